"""The pretrained checkpoint that a run starts from, resolved and read once."""

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AlignConfig, AlignModel, AlignProcessor, AutoImageProcessor

from finetune.core.errors import CheckpointError, RecipeError, did_you_mean
from finetune.core.exchange import restore_folder
from finetune.model.checkpoint_folder import check_folder, check_processor, read_object
from finetune.model.layers import Tower
from finetune.model.mini import MINI, open_mini
from finetune.model.pixels import read_levels
from finetune.model.pretrained import open_model, opening
from finetune.model.weights import Weights, fingerprint_state

HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
# What is downloaded of a hub id; adapter_config.json is among it, so that an adapter is recognised as one.
MODEL_FILES = ["config.json", "*_config.json", "model*.safetensors", "model.safetensors.index.json"]
PROCESSOR_FILES = ["tokenizer.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json"]
CARD_FILE = "README.md"  # states the licence
SMALLEST_IMAGE = 32  # pixels; the image tower halves the side five times
LARGEST_IMAGE = 4096  # an image tower keeps gigabytes of each image long before


class Base:
    """An ALIGN checkpoint: its name, its folder, its weights. Open it once and pass it on.

    The weights are read from disk at their first use and then shared: by the fingerprint, by each model that `load`
    builds, and by whatever interpolates towards them.

    Args:
        name: What another working directory finds the same checkpoint by: `align-mini`, a hub id, or an absolute path.
        folder: Holds what `AlignModel` and `AlignProcessor` read.
        weights: The folder's weights where they are open already.

    Example:
        >>> base = Base.open("align-mini")
        >>> base.load().config.projection_dim
        320
    """

    def __init__(self, name: str, folder: Path, weights: Weights | None = None) -> None:
        self.name = name
        self.folder = folder
        self._opened = weights

    def __repr__(self) -> str:
        return f"Base({self.name!r})"

    @classmethod
    def open(cls, checkpoint: "str | Path | Base") -> Self:
        """Finds a checkpoint's folder and checks that it holds an ALIGN, before anything is loaded from it.

        Args:
            checkpoint: `align-mini`; a folder written by `AlignModel` and `AlignProcessor`; or a hub id,
                `owner/name` or `owner/name@revision`, which is downloaded into the hub's own cache. A base is
                returned as it is.

        Raises:
            CheckpointError: If there is no such checkpoint, or its folder is incomplete, an adapter or no ALIGN.
        """
        if isinstance(checkpoint, cls):
            return checkpoint
        name = str(checkpoint)
        if name == MINI:
            return cls(MINI, *open_mini())
        folder = Path(name).expanduser()
        restore_folder(folder)
        if folder.is_dir():
            name = str(folder.resolve())
        else:
            folder = _download(name)
        check_folder(folder)
        return cls(name, folder)

    def __deepcopy__(self, memo: Any) -> Self:
        """Returns the base itself: there is nothing in it to change."""
        return self

    def __reduce__(self) -> tuple[Callable[[str], "Base"], tuple[str]]:
        """Pickles the name alone: another process opens the base again."""
        return Base.open, (self.name,)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors as they are stored, by name, on the CPU. They are shared: clone what you write to.

        Raises:
            CheckpointError: If a file is damaged.
        """
        return self._weights.tensors

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, whatever files they are spread over; see `finetune.core.files.fingerprint_tensors`.

        Raises:
            CheckpointError: If a file is damaged.
        """
        return self._weights.fingerprint

    def fingerprint_tower(self, tower: Tower) -> str:
        """Returns the SHA-256 of one tower's weights, as `state_dict` gives them: equal where only the other was tuned.

        Args:
            tower: The tower.

        Raises:
            CheckpointError: As `load`.
        """
        return fingerprint_state({name: value for name, value in self.state_dict().items() if tower.owns(name)})

    @cached_property
    def public_name(self) -> str:
        """What files that are handed on call the checkpoint: what it is, never where it lies.

        `align-mini`, or a hub id. A folder is called by the hub id that its own `config.json` gives as its origin
        (`_name_or_path`), unless that is where it lies, and else by the beginning of its fingerprint.

        Raises:
            CheckpointError: If a file is damaged.
        """
        if self.name == MINI or HUB_ID.fullmatch(self.name):
            return self.name
        origin = str(read_object(self.folder / "config.json").get("_name_or_path"))
        if HUB_ID.fullmatch(origin) and not self.folder.resolve().as_posix().endswith(f"/{origin}"):
            return origin
        return f"sha256:{self.fingerprint[:12]}"

    @property
    def dimension(self) -> int:
        """Numbers of an embedding.

        Raises:
            CheckpointError: If the checkpoint's `config.json` cannot be read.
        """
        return int(self._config.projection_dim)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the tensors as `load` puts them into a model, in float32; those that are stored so are shared.

        Raises:
            CheckpointError: As `load`.
        """
        config = self._config
        with opening(self.folder, "AlignModel"), torch.device("meta"):
            names = AlignModel(config).state_dict()
        if not names.keys() <= self.tensors.keys():  # some are stored under older names, or missing
            return self.load().state_dict()
        return {name: self.tensors[name].to(like.dtype) for name, like in names.items()}

    @cached_property
    def _config(self) -> AlignConfig:
        with opening(self.folder, "AlignModel"):
            config: AlignConfig = AlignConfig.from_pretrained(self.folder, local_files_only=True)
        return config

    @cached_property
    def _weights(self) -> Weights:
        with opening(self.folder, "AlignModel"):
            return self._opened or Weights(self.folder)

    def load(self) -> AlignModel:
        """Builds a fresh model in float32 and evaluation mode, with every tensor accounted for.

        Raises:
            CheckpointError: If a file is damaged, or the tensors are not exactly those of the checkpoint's
                `config.json`.
        """
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return open_model(AlignModel, self.folder, config=self._config, state_dict=tensors, attn_implementation="eager")

    @cached_property
    def levels(self) -> Tensor:
        """What the checkpoint's processor makes of each level of each channel, float32 of shape (3, 256).

        Raises:
            CheckpointError: If the processor cannot be opened.
        """
        return read_levels(open_image_processor(self.folder))

    def processor(self, image_size: int | None = None) -> AlignProcessor:
        """Opens the checkpoint's own processor, pinned to Pillow, at its own or another image size.

        Args:
            image_size: Side in pixels of the images that the model receives. The size to which images are resized
                before they are cropped follows in proportion. None keeps the checkpoint's own.

        Raises:
            CheckpointError: If the processor cannot be opened.
            RecipeError: If `image_size` is too small or too large for the image tower.
        """
        if image_size is not None and not SMALLEST_IMAGE <= image_size <= LARGEST_IMAGE:
            raise RecipeError(
                f"Expected image_size to be from {SMALLEST_IMAGE} to {LARGEST_IMAGE} pixels, but got {image_size}."
            )
        processor = open_processor(self.folder)
        if image_size is not None:
            _rescale(processor.image_processor, image_size)
        return processor


Checkpoint = str | Base
"""What names a base: recipes write a string."""


def open_processor(folder: Path) -> AlignProcessor:
    """Opens the processor of a checkpoint's or adapter's folder, pinned to Pillow, as it is to be written again.

    Args:
        folder: A folder that a processor was saved into.

    Raises:
        CheckpointError: If there is none or it cannot be opened.
    """
    check_processor(folder)
    with opening(folder, "AlignProcessor"):
        processor: AlignProcessor = AlignProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    for key in ("backend", "is_local", "local_files_only"):  # how it was opened here, else saved with it
        processor.tokenizer.init_kwargs.pop(key, None)
    return processor


def open_image_processor(folder: Path) -> Any:
    """Opens the image processor of a folder, pinned to Pillow.

    Args:
        folder: A folder that a processor was saved into.

    Raises:
        CheckpointError: If there is none or it cannot be opened.
    """
    check_processor(folder)
    with opening(folder, "AutoImageProcessor"):
        return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)


def _rescale(image_processor: Any, image_size: int) -> None:
    received = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    factor = image_size / min(dict(received).values())
    for name in ("size", "crop_size"):
        if sides := getattr(image_processor, name):
            rescaled = {side: round(pixels * factor) for side, pixels in dict(sides).items()}
            setattr(image_processor, name, type(sides)(**rescaled))


def _download(checkpoint: str) -> Path:
    """Downloads the needed files of a hub id into the hub's cache, or says what the user may have meant."""
    from huggingface_hub import snapshot_download

    beside = [str(path.parent) for path in Path(checkpoint).expanduser().parent.glob("*/config.json")]
    hub_id = HUB_ID.fullmatch(checkpoint)
    if hub_id is None:
        raise CheckpointError(
            f"Expected the checkpoint to be {MINI}, a folder or a hub id (owner/name), "
            f"but got {checkpoint!r}, which is no folder. {did_you_mean(checkpoint, [MINI, *beside])}"
        )
    try:
        patterns = [*MODEL_FILES, *PROCESSOR_FILES, CARD_FILE]
        return Path(snapshot_download(hub_id["name"], revision=hub_id["revision"], allow_patterns=patterns))
    except Exception as error:  # the hub's client lets those of its transport through
        reason = (str(error) or type(error).__name__).removeprefix("Got: ").splitlines()[0].rstrip(".")
        raise CheckpointError(
            f"Expected {checkpoint!r} to be a folder or to be found on the model hub, but got: {reason}. "
            f"Without access to the hub, download it elsewhere and pass the folder, or use {MINI}. "
            f"{did_you_mean(checkpoint, beside) if beside else ''}".rstrip()
        ) from error
