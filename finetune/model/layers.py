"""Which modules of a tower a name means: kinds of layer, module names, and the blocks that are in reach."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import AlignModel

from finetune.core.errors import did_you_mean


@dataclass(frozen=True)
class Tower:
    """Where a tower's modules lie in `AlignModel`; patterns match whole module names.

    Args:
        argument: The argument of `attach_lora` that speaks of this tower.
        modules: All modules that take part in its embedding.
        blocks: Modules of a block, whose number is the first group.
        kinds: Kinds of layer that take low-rank adapters.
        whole_kinds: Kinds that can only be trained whole.
        default: The kinds adapted where none is named.
    """

    argument: str
    modules: str
    blocks: str
    kinds: dict[str, str]
    whole_kinds: dict[str, str]
    default: tuple[str, ...]


IMAGE = Tower(
    argument="image_lora",
    modules=r"vision_model\..*",
    blocks=r"vision_model\.encoder\.blocks\.(\d+)\..*",
    kinds={
        "pointwise": r".*\.(expand_conv|project_conv)",
        "squeeze_excite": r".*\.squeeze_excite\.(reduce|expand)",
        "stem": r"vision_model\.embeddings\.convolution",
    },
    whole_kinds={
        "depthwise": r".*\.depthwise_conv\.depthwise_conv",
        "norm": r".*\.(batchnorm|expand_bn|depthwise_norm|project_bn)",
        "all": r".*",
    },
    default=("pointwise",),
)
TEXT = Tower(
    argument="text_lora",
    modules=r"text_model\.(?!pooler).*|text_projection",
    blocks=r"text_model\.encoder\.layer\.(\d+)\..*",
    kinds={
        "attention": r".*\.(query|key|value|attention\.output\.dense)",
        "feed_forward": r".*\.\d+\.(intermediate|output)\.dense",
        "projection": r"text_projection",
        "embedding": r".*\.word_embeddings",
    },
    whole_kinds={"norm": r".*\.LayerNorm", "all": r".*"},
    default=("attention", "feed_forward", "projection"),
)


def low_rank_layers(model: AlignModel, tower: Tower, names: Sequence[str], last_blocks: int | None) -> list[str]:
    """Layers that `names` mean, as targets of low-rank adapters.

    Args:
        model: The model, nothing attached to it yet.
        tower: The tower in question.
        names: Kinds of layer, or module names.
        last_blocks: How many blocks nearest the embedding are in reach; None reaches everything.

    Returns:
        Full names in the model's order.

    Raises:
        ValueError: If a name means no layer, or one that cannot be adapted or cannot learn.
    """
    layers = _layers(model, tower)
    adaptable = [name for name in layers if _is_adaptable(model.get_submodule(name))]
    found: set[str] = set()
    for entry in names:
        pattern = tower.kinds.get(entry, rf"(.*\.)?{re.escape(entry)}")
        meant = [name for name in adaptable if re.fullmatch(pattern, name)]
        if not meant and (entry in tower.whole_kinds or any(re.fullmatch(pattern, name) for name in layers)):
            raise ValueError(
                f"Expected each entry of {tower.argument}.layers to name layers that take low-rank adapters, but "
                f"got {entry!r}, which do not. Name it in {tower.argument}.whole to train them whole."
            )
        if not meant:
            raise ValueError(_unmatched(f"{tower.argument}.layers", entry, [*tower.kinds], adaptable))
        reached = _in_reach(tower, layers, meant, f"{tower.argument}.layers", entry, last_blocks)
        _refuse_closed_gates(model, reached, f"{tower.argument}.layers", entry)
        found.update(reached)
    return [name for name in layers if name in found]


def whole_layers(model: AlignModel, tower: Tower, names: Sequence[str], last_blocks: int | None) -> list[str]:
    """Layers that `names` mean, all of whose weights are trained; a module's name means all that is inside it.

    Args:
        model: The model, nothing attached to it yet.
        tower: The tower in question.
        names: Kinds of layer, or module names.
        last_blocks: How many blocks nearest the embedding are in reach; None reaches everything.

    Returns:
        Full names of modules that hold parameters of their own, in the model's order.

    Raises:
        ValueError: If a name means no layer, or one that cannot learn.
    """
    layers = _layers(model, tower)
    kinds = {**tower.whole_kinds, **tower.kinds}
    found: set[str] = set()
    for entry in names:
        pattern = kinds.get(entry, rf"(.*\.)?{re.escape(entry)}(\..*)?")
        meant = [name for name in layers if re.fullmatch(pattern, name)]
        if not meant:
            raise ValueError(_unmatched(f"{tower.argument}.whole", entry, [*kinds], layers))
        reached = _in_reach(tower, layers, meant, f"{tower.argument}.whole", entry, last_blocks)
        _refuse_closed_gates(model, reached, f"{tower.argument}.whole", entry)
        found.update(reached)
    return [name for name in layers if name in found]


def enclosing_modules(model: AlignModel, layers: Sequence[str]) -> list[str]:
    """The fewest modules that hold exactly `layers`, which PEFT then copies and saves each as one.

    PEFT compares each module of the model with each name, so that a few names attach faster than hundreds, and
    its configuration stays readable: a whole image tower is `vision_model`. Lists of modules are passed over, as
    PEFT cannot wrap them, and so are the blocks in them, so that whoever walks over the blocks meets blocks.

    Args:
        model: The model, nothing attached to it yet.
        layers: Full names of modules that hold parameters of their own.

    Returns:
        Full names in the model's order, none inside another.
    """
    wanted = set(layers)
    found: list[str] = []
    for name, module in model.named_modules():
        is_inside = bool(found) and name.startswith(f"{found[-1]}.")
        is_block = name.rpartition(".")[2].isdigit()
        if not name or is_inside or is_block or isinstance(module, nn.ModuleList):
            continue
        inside = {
            f"{name}.{inner}".rstrip(".")
            for inner, layer in module.named_modules()
            if next(layer.parameters(recurse=False), None) is not None
        }
        if inside and inside <= wanted:
            found.append(name)
    return found


def _layers(model: AlignModel, tower: Tower) -> list[str]:
    """The tower's modules that hold parameters of their own."""
    return [
        name
        for name, module in model.named_modules()
        if re.fullmatch(tower.modules, name) and next(module.parameters(recurse=False), None) is not None
    ]


def _is_adaptable(layer: nn.Module) -> bool:
    """PEFT adapts and merges these; a depthwise convolution it refuses, at one of several late points."""
    return isinstance(layer, nn.Linear | nn.Embedding) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _in_reach(
    tower: Tower, layers: list[str], meant: list[str], argument: str, entry: str, last_blocks: int | None
) -> list[str]:
    """What of `meant` lies in the last blocks, or after them as the text projection does."""
    if last_blocks is None:
        return meant
    blocks = {name: int(found[1]) for name in layers if (found := re.fullmatch(tower.blocks, name))}
    first = max(blocks.values()) + 1 - last_blocks
    reached = [name for name in meant if blocks.get(name, -1) >= first or name == "text_projection"]
    if not reached:
        raise ValueError(
            f"Expected each entry of {argument} to name a layer of its tower, but got {entry!r}. None lies in the "
            f"last {last_blocks} blocks: raise last_blocks or set it to null."
        )
    return reached


def _refuse_closed_gates(model: AlignModel, names: list[str], argument: str, entry: str) -> None:
    """Squeeze-excite that was set to the identity has exactly zero gradient, and DoRA's first forward is NaN."""
    gates = [name.rpartition(".")[0] for name in names if re.fullmatch(r".*\.squeeze_excite\.(reduce|expand)", name)]
    if len(gates) < len(names):
        return
    for gate in gates:
        if not model.get_parameter(f"{gate}.expand.weight").any():
            raise ValueError(
                f"Expected {argument} to name layers that can learn, but got {entry!r}: {gate}.expand.weight of "
                "this checkpoint is zero throughout, as in align-mini, whose image tower has no squeeze-excite "
                f"and computes the identity there. Remove {entry!r} from the list."
            )


def _unmatched(argument: str, entry: str, kinds: list[str], layers: list[str]) -> str:
    suggestion = did_you_mean(entry, [*kinds, *{name.rsplit(".", 1)[-1] for name in layers}])
    return f"Expected each entry of {argument} to name a layer of its tower, but got {entry!r}. {suggestion}"
