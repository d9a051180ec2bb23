"""The towers of `AlignModel`, and which of their layers a name means: a kind of layer, or a module."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import AlignModel

from finetune.core.errors import did_you_mean


@dataclass(frozen=True)
class Tower:
    """One tower of `AlignModel`; patterns match whole module names.

    Args:
        name: `image` or `text`.
        parts: Modules of `AlignModel` that hold all its tensors.
        modules: Pattern of the modules that take part in its embedding.
        embeddings: Pattern of the modules that come before the blocks.
        blocks: Pattern of the modules of a block, whose number is the first group.
        kinds: Patterns of the kinds of layer that take low-rank adapters.
        whole_kinds: Patterns of the kinds that can only be trained whole.
        default: The kinds that are adapted where none is named.
    """

    name: str
    parts: tuple[str, ...]
    modules: str
    embeddings: str
    blocks: str
    kinds: dict[str, str]
    whole_kinds: dict[str, str]
    default: tuple[str, ...]

    @property
    def argument(self) -> str:
        """The argument of `attach_lora` that names its layers."""
        return f"{self.name}_lora"

    def owns(self, name: str) -> bool:
        """Returns whether a parameter or buffer belongs to this tower, adapters included.

        Args:
            name: Its name in `AlignModel`, or in a model around it.

        Example:
            >>> TEXT.owns("base_model.model.text_projection.lora_A.default.weight"), TEXT.owns("temperature")
            (True, False)
        """
        return not {*self.parts}.isdisjoint(name.split("."))

    def depths(self, names: Iterable[str]) -> dict[str, float]:
        """Returns where each of the tower's tensors lies between its first block, 0, and its last, 1, by name.

        What comes before the blocks lies at 0. What follows them lies at 1, and so does an only block.

        Args:
            names: The names of a state dict of `AlignModel`, of which those of the other tower are passed over.

        Example:
            >>> TEXT.depths([f"text_model.encoder.layer.{block}.output.dense.bias" for block in range(3)]).values()
            dict_values([0.0, 0.5, 1.0])
        """
        own = [name for name in names if self.owns(name)]
        blocks = {name: int(found[1]) for name in own if (found := re.fullmatch(self.blocks, name))}
        last = max(blocks.values(), default=0)
        depths = {name: block / last if last else 1.0 for name, block in blocks.items()}
        return {name: depths.get(name, 0.0 if re.fullmatch(self.embeddings, name) else 1.0) for name in own}


IMAGE = Tower(
    name="image",
    parts=("vision_model",),
    modules=r"vision_model\..*",
    embeddings=r"vision_model\.embeddings\..*",
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
    name="text",
    parts=("text_model", "text_projection"),
    modules=r"text_model\.(?!pooler).*|text_projection",
    embeddings=r"text_model\.embeddings\..*",
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
TOWERS = (IMAGE, TEXT)


@dataclass(frozen=True)
class _Meaning:
    """What the entries of an argument may mean.

    Args:
        argument: The argument, for messages.
        kinds: The kinds of layer that it knows, and their patterns.
        inside: Pattern of what may follow the name of a module that is meant.
        takes: Whether a layer can be trained in the argument's way.
    """

    argument: str
    kinds: Mapping[str, str]
    inside: str
    takes: Callable[[nn.Module], bool]

    def pattern(self, entry: str) -> str:
        """Returns the pattern of the layers that an entry means."""
        return self.kinds.get(entry, rf"(.*\.)?{re.escape(entry)}{self.inside}")


def low_rank_layers(model: AlignModel, tower: Tower, names: Sequence[str], last_blocks: int | None) -> list[str]:
    """Returns the layers that `names` mean, as targets of low-rank adapters.

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
    meaning = _Meaning(f"{tower.argument}.layers", tower.kinds, "", _is_adaptable)
    return _find_layers(model, tower, meaning, names, last_blocks)


def whole_layers(model: AlignModel, tower: Tower, names: Sequence[str], last_blocks: int | None) -> list[str]:
    """Returns the layers that `names` mean, to train all their weights; a module's name means all that is inside it.

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
    kinds = {**tower.whole_kinds, **tower.kinds}
    meaning = _Meaning(f"{tower.argument}.whole", kinds, r"(\..*)?", lambda _: True)
    return _find_layers(model, tower, meaning, names, last_blocks)


def enclosing_modules(model: AlignModel, layers: Sequence[str]) -> list[str]:
    """Returns the fewest modules that hold exactly `layers`; PEFT copies and saves each of them as one.

    PEFT compares each module of the model with each name, so a few names attach faster than hundreds, and its
    configuration stays readable: a whole image tower is `vision_model`. Lists of modules are passed over, as PEFT
    cannot wrap them, and so are the blocks in them: code that walks over the blocks then meets blocks.

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


def _find_layers(
    model: AlignModel, tower: Tower, meaning: _Meaning, names: Sequence[str], last_blocks: int | None
) -> list[str]:
    layers = _layers(model, tower)
    able = [name for name in layers if meaning.takes(model.get_submodule(name))]
    found: set[str] = set()
    for entry in names:
        expected = f"Expected each entry of {meaning.argument} to name a layer of its tower, but got {entry!r}."
        meant = _matching(meaning.pattern(entry), able)
        if not meant and _matching(tower.whole_kinds.get(entry, meaning.pattern(entry)), layers):
            raise ValueError(
                f"Expected each entry of {meaning.argument} to name layers that take low-rank adapters, but got "
                f"{entry!r}, which do not. Name it in {tower.argument}.whole to train them whole."
            )
        if not meant:
            raise ValueError(f"{expected} {did_you_mean(entry, {*meaning.kinds, *map(_last_part, able)})}")
        reached = _in_reach(tower, layers, meant, last_blocks)
        if not reached:
            raise ValueError(
                f"{expected} None lies in the last {last_blocks} blocks: raise last_blocks or set it to null."
            )
        if gate := _find_closed_gate(model, reached):
            raise ValueError(
                f"Expected {meaning.argument} to name layers that can learn, but got {entry!r}: {gate} of this "
                "checkpoint is zero throughout, as in align-mini, whose image tower has no squeeze-excite and computes "
                f"the identity there. Remove {entry!r} from the list."
            )
        found.update(reached)
    return [name for name in layers if name in found]


def _layers(model: AlignModel, tower: Tower) -> list[str]:
    """The tower's modules that hold parameters of their own."""
    return [
        name
        for name, module in model.named_modules()
        if re.fullmatch(tower.modules, name) and next(module.parameters(recurse=False), None) is not None
    ]


def _is_adaptable(layer: nn.Module) -> bool:
    """PEFT adapts and merges these; it refuses a depthwise convolution, at one of several late points."""
    return isinstance(layer, nn.Linear | nn.Embedding) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if re.fullmatch(pattern, name)]


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def _in_reach(tower: Tower, layers: list[str], meant: list[str], last_blocks: int | None) -> list[str]:
    """What of `meant` lies in the last blocks, or after them as the text projection does."""
    if last_blocks is None:
        return meant
    blocks = {name: int(found[1]) for name in layers if (found := re.fullmatch(tower.blocks, name))}
    first = max(blocks.values()) + 1 - last_blocks
    return [name for name in meant if blocks.get(name, -1) >= first or name == "text_projection"]


def _find_closed_gate(model: AlignModel, names: list[str]) -> str | None:
    """The first weight that keeps its gradient at exactly zero, where squeeze-excite alone is named.

    Squeeze-excite that was set to the identity has no gradient, and DoRA's first forward pass through it is NaN.
    """
    gates = [f"{name.rpartition('.')[0]}.expand.weight" for name in names if ".squeeze_excite." in name]
    closed = (gate for gate in gates if not model.get_parameter(gate).any())
    return next(closed, None) if len(gates) == len(names) else None
