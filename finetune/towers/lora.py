"""LoRA on either or both towers through PEFT: which layers, attached how, saved and read back how."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn
from transformers import AlignModel

from finetune.errors import CheckpointError, did_you_mean
from finetune.files import read_json, write_json

TEMPERATURE_FILE = "temperature.json"


@dataclass(frozen=True)
class TowerLora:
    """Low-rank adapters on one tower (LoRA, Hu et al. 2021, arXiv 2106.09685).

    Args:
        rank: Inner dimension of each adapter.
        alpha: Numerator of the adapter's scale, alpha / rank (alpha / sqrt(rank) with `use_rslora`).
        dropout: Probability of dropping an input of the adapter while training.
        layers: Kinds of layer to adapt, or module names as PEFT takes them. Image tower: `pointwise` (1x1
            convolutions), `squeeze_excite`, `stem`; text tower: `attention`, `feed_forward`, `projection`,
            `embedding`. Null adapts `pointwise`, or `attention`, `feed_forward` and `projection`.
        last_blocks: Adapt only this many blocks nearest the embedding; null adapts all of them.
        use_rslora: Scale by the square root of the rank (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
        use_dora: Train magnitudes beside directions (DoRA, Liu et al. 2024, arXiv 2402.09353).

    Raises:
        ValueError: If a number is out of its range.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    layers: list[str] | None = None
    last_blocks: int | None = None
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"Expected rank to be at least 1, but got {self.rank}.")
        if self.alpha <= 0:
            raise ValueError(f"Expected alpha to be positive, but got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Expected dropout to be in [0, 1), but got {self.dropout}.")
        if self.last_blocks is not None and self.last_blocks < 1:
            raise ValueError(f"Expected last_blocks to be at least 1 or null, but got {self.last_blocks}.")
        if self.layers is not None and not self.layers:
            raise ValueError("Expected layers to name at least one layer, but got []. Null takes the default.")


@dataclass(frozen=True)
class _Tower:
    """Where a tower's modules lie in `AlignModel`; patterns match whole module names."""

    argument: str
    modules: str
    blocks: str
    kinds: dict[str, str]
    default: tuple[str, ...]


_IMAGE = _Tower(
    argument="image_lora",
    modules=r"vision_model\..*",
    blocks=r"vision_model\.encoder\.blocks\.(\d+)\..*",
    kinds={
        "pointwise": r".*\.(expand_conv|project_conv)",
        "squeeze_excite": r".*\.squeeze_excite\.(reduce|expand)",
        "stem": r"vision_model\.embeddings\.convolution",
    },
    default=("pointwise",),
)
_TEXT = _Tower(
    argument="text_lora",
    modules=r"text_model\.(?!pooler).*|text_projection",
    blocks=r"text_model\.encoder\.layer\.(\d+)\..*",
    kinds={
        "attention": r".*\.(query|key|value|attention\.output\.dense)",
        "feed_forward": r".*\.\d+\.(intermediate|output)\.dense",
        "projection": r"text_projection",
        "embedding": r".*\.word_embeddings",
    },
    default=("attention", "feed_forward", "projection"),
)


def attach_lora(model: AlignModel, image_lora: TowerLora | None, text_lora: TowerLora | None) -> nn.Module:
    """Freezes the model and puts adapters into the layers that were asked for.

    Args:
        model: The pretrained model; it is changed in place.
        image_lora: Adapters of the image tower, None leaves it frozen.
        text_lora: Adapters of the text tower, None leaves it frozen.

    Returns:
        A `PeftModel`, or `model` itself where both towers stay frozen.

    Raises:
        ValueError: If a layer name matches nothing, or the towers differ in `use_rslora` or `use_dora`, which
            PEFT settles for both at once.
    """
    model.requires_grad_(False)
    chosen = [(tower, lora) for tower, lora in ((_IMAGE, image_lora), (_TEXT, text_lora)) if lora]
    if not chosen:
        return model
    first = chosen[0][1]
    for name in ("use_rslora", "use_dora"):
        if len({getattr(lora, name) for _, lora in chosen}) > 1:
            raise ValueError(
                f"Expected image_lora.{name} and text_lora.{name} to be equal, but got both values. "
                "PEFT settles it for both towers at once: set the same value in both."
            )
    targets = {tower.argument: _target_modules(model, tower, lora) for tower, lora in chosen}
    config = LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,
        lora_dropout=first.dropout,
        target_modules=[name for names in targets.values() for name in names],
        rank_pattern={tower.modules: lora.rank for tower, lora in chosen[1:]},
        alpha_pattern={tower.modules: lora.alpha for tower, lora in chosen[1:]},
        use_rslora=first.use_rslora,
        use_dora=first.use_dora,
    )
    adapted = get_peft_model(model, config)
    for tower, lora in chosen[1:]:
        _set_dropout(model, targets[tower.argument], lora.dropout)
    return adapted


def _target_modules(model: AlignModel, tower: _Tower, lora: TowerLora) -> list[str]:
    """Full names of the modules that `lora` asks for, in the model's order."""
    leaves = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding) and re.fullmatch(tower.modules, name)
    ]
    blocks = {name: int(found[1]) for name in leaves if (found := re.fullmatch(tower.blocks, name))}
    first_block = 0 if lora.last_blocks is None else max(blocks.values()) + 1 - lora.last_blocks
    reachable = [
        name
        for name in leaves
        if lora.last_blocks is None or blocks.get(name, -1) >= first_block or name == "text_projection"
    ]
    targets: set[str] = set()
    for layer in lora.layers if lora.layers is not None else tower.default:
        pattern = tower.kinds.get(layer, rf"(.*\.)?{re.escape(layer)}")
        found_names = {name for name in reachable if re.fullmatch(pattern, name)}
        if not found_names:
            raise ValueError(_unmatched(tower, lora, layer, leaves, pattern))
        targets |= found_names
    if lora.layers and "squeeze_excite" in lora.layers:
        _refuse_closed_gates(model, tower)
    return [name for name in leaves if name in targets]


def _unmatched(tower: _Tower, lora: TowerLora, layer: str, leaves: list[str], pattern: str) -> str:
    message = f"Expected each entry of {tower.argument}.layers to name a layer of its tower, but got {layer!r}. "
    if any(re.fullmatch(pattern, name) for name in leaves):
        return message + f"None lies in the last {lora.last_blocks} blocks: raise last_blocks or set it to null."
    return message + did_you_mean(layer, [*tower.kinds, *{name.rsplit(".", 1)[-1] for name in leaves}])


def _refuse_closed_gates(model: AlignModel, tower: _Tower) -> None:
    """Squeeze-excite that was set to the identity has exactly zero gradient, and DoRA's first forward is NaN."""
    for name, module in model.named_modules():
        if name.endswith("squeeze_excite.expand") and not module.weight.any():
            raise ValueError(
                f"Expected {tower.argument}.layers to name layers that can learn, but got 'squeeze_excite': "
                f"{name}.weight of this checkpoint is zero throughout, as in align-mini, whose image tower has "
                "no squeeze-excite and computes the identity there. Remove 'squeeze_excite' from the list."
            )


def _set_dropout(model: AlignModel, names: Iterable[str], dropout: float) -> None:
    """PEFT has one dropout for all layers of an adapter; this sets the second tower's own."""
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, LoraLayer)
        layer.lora_dropout["default"] = nn.Dropout(dropout) if dropout else nn.Identity()


def save_adapter(adapted: PeftModel, folder: Path, checkpoint: str, fingerprint: str) -> None:
    """Writes a standard PEFT folder and the temperature, which PEFT would lose, as a sidecar.

    Args:
        adapted: The model returned by `attach_lora`.
        folder: An existing, empty folder.
        checkpoint: Name of the base that another machine understands: a hub id, `align-mini`, or a path.
        fingerprint: SHA-256 of the base's weights, see `finetune.files.fingerprint_weights`.
    """
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config: dict[str, Any] = read_json(path)
    config["base_model_name_or_path"] = checkpoint
    config["target_modules"] = sorted(config["target_modules"])
    write_json(path, config)
    temperature = float(adapted.get_base_model().temperature.detach())
    write_json(
        folder / TEMPERATURE_FILE,
        {"temperature": temperature, "base_model": checkpoint, "base_model_sha256": fingerprint},
    )


def load_adapter(model: AlignModel, folder: Path, fingerprint: str) -> PeftModel:
    """Puts a saved adapter and its temperature into the base it was trained on.

    Args:
        model: The base, float32; it is changed in place.
        folder: A folder written by `save_adapter`.
        fingerprint: SHA-256 of the weights `model` was loaded from.

    Raises:
        CheckpointError: If a file is missing, the base is another one, or the tensors on disk are not exactly
            those the adapter's configuration asks for.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors", TEMPERATURE_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"Expected {folder} to be an adapter folder, but {name} is missing.")
    sidecar = read_json(folder / TEMPERATURE_FILE)
    if sidecar["base_model_sha256"] != fingerprint:
        raise CheckpointError(
            f"Expected the base of {folder} to be {sidecar['base_model']} with SHA-256 "
            f"{sidecar['base_model_sha256']}, but got weights with SHA-256 {fingerprint}. "
            "Use the checkpoint the adapter was trained on."
        )
    adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        found = set(file.keys())
    for title, names in (("missing", expected - found), ("unexpected", found - expected)):
        if names:
            raise CheckpointError(
                f"Expected {folder}/adapter_model.safetensors to hold the adapter's tensors, but "
                f"{len(names)} are {title}, among them {min(names)}. Write the adapter again from its run."
            )
    model.temperature.data.fill_(sidecar["temperature"])
    return adapted
