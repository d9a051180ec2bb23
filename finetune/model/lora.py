"""Adapters on either or both towers through PEFT: low-rank ones, and layers that are trained whole."""

from collections.abc import Iterable
from dataclasses import dataclass

from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import AlignModel

from finetune.model.batchnorm import FollowingBatchNorm2d
from finetune.model.layers import IMAGE, TEXT, Tower, enclosing_modules, low_rank_layers, whole_layers
from finetune.model.pretrained import quiet_transformers

ADAPTER = "default"
"""What PEFT calls an adapter that nobody named."""


def is_plain_lora(layer: LoraLayer) -> bool:
    """Whether a layer computes W x + s B A x and nothing else: one adapter, no dropout, no DoRA, no bias of its own.

    Args:
        layer: A linear layer or a convolution of PEFT.
    """
    if layer.active_adapters != [ADAPTER] or layer.merged or layer.disable_adapters:
        return False
    has_more = layer.lora_bias[ADAPTER] or layer.use_dora[ADAPTER]
    return not has_more and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)


@dataclass(frozen=True)
class TowerLora:
    """What is trained in one tower: low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685), and whole layers.

    Args:
        rank: Inner dimension of each adapter.
        alpha: Numerator of the adapter's scale, alpha / rank (alpha / sqrt(rank) with `use_rslora`).
        dropout: Probability of dropping an input of the adapter while training.
        layers: Kinds of layer to adapt, or module names as PEFT takes them. Image tower: `pointwise` (1x1
            convolutions), `squeeze_excite`, `stem`; text tower: `attention`, `feed_forward`, `projection`,
            `embedding`. Null adapts `pointwise`, or `attention`, `feed_forward` and `projection`, except what
            `whole` names; [] adapts none.
        last_blocks: Train only this many blocks nearest the embedding; null trains all of them.
        use_rslora: Scale by the square root of the rank (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
        use_dora: Train magnitudes beside directions (DoRA, Liu et al. 2024, arXiv 2402.09353).
        whole: Layers all of whose weights are trained, saved and merged with the adapter: `depthwise`
            (convolutions of the image tower, which take no low-rank adapter), `norm` (scale and shift of
            BatchNorm or LayerNorm), `all` of the tower, a kind named above, or module names. Memory holds the
            original weights of these layers beside the trained ones. Null trains none.
        train_statistics: Image tower only: BatchNorm normalises by the statistics of the batch while training,
            and its running statistics follow with momentum 0.01. Otherwise they stay those of the base.

    Raises:
        ValueError: If a number is out of its range, or nothing would be trained.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    layers: list[str] | None = None
    last_blocks: int | None = None
    use_rslora: bool = False
    use_dora: bool = False
    whole: list[str] | None = None
    train_statistics: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"Expected rank to be at least 1, but got {self.rank}.")
        if self.alpha <= 0:
            raise ValueError(f"Expected alpha to be positive, but got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Expected dropout to be in [0, 1), but got {self.dropout}.")
        if self.last_blocks is not None and self.last_blocks < 1:
            raise ValueError(f"Expected last_blocks to be at least 1 or null, but got {self.last_blocks}.")
        if self.layers == [] and not self.whole and not self.train_statistics:
            raise ValueError(
                "Expected layers to name at least one layer, but got []. Null takes the default; name in `whole` "
                "what is trained without low-rank adapters."
            )


@dataclass(frozen=True)
class _TrainedLayers:
    """The layers of a tower that its `TowerLora` trains, by full name.

    Args:
        tower: The tower.
        lora: What is trained in it.
        low_rank: Layers with low-rank adapters.
        whole: Layers whose weights are all trained.
        following: BatchNorms whose running statistics follow the training images.
    """

    tower: Tower
    lora: TowerLora
    low_rank: list[str]
    whole: list[str]
    following: list[str]


def attach_lora(model: AlignModel, image_lora: TowerLora | None, text_lora: TowerLora | None) -> nn.Module:
    """Freezes the model and puts adapters into the layers that are to be trained.

    Args:
        model: The base, which is changed in place.
        image_lora: What is trained in the image tower; None leaves it frozen.
        text_lora: What is trained in the text tower; None leaves it frozen.

    Returns:
        A `PeftModel`, or `model` itself where both towers stay frozen.

    Raises:
        ValueError: If a layer name matches nothing, a layer is named in two ways, the text tower is to train
            statistics, or the towers differ in `use_rslora` or `use_dora`, which PEFT settles for both at once.
    """
    model.requires_grad_(False)
    trained = [_resolve(model, tower, lora) for tower, lora in ((IMAGE, image_lora), (TEXT, text_lora)) if lora]
    if not trained:
        return model
    low_rank = [layers for layers in trained if layers.low_rank]
    for name in ("use_rslora", "use_dora"):
        if len({getattr(layers.lora, name) for layers in low_rank}) > 1:
            raise ValueError(
                f"Expected image_lora.{name} and text_lora.{name} to be equal, but got both values. "
                "PEFT settles it for both towers at once: set the same value in both."
            )
    first = (low_rank or trained)[0].lora
    copied = [name for layers in trained for name in layers.whole + layers.following]
    config = LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,  # type: ignore[arg-type]
        lora_dropout=first.dropout,
        target_modules=[name for layers in low_rank for name in layers.low_rank] or DUMMY_TARGET_MODULES,
        rank_pattern={layers.tower.modules: layers.lora.rank for layers in low_rank[1:]},
        alpha_pattern={layers.tower.modules: layers.lora.alpha for layers in low_rank[1:]},
        use_rslora=first.use_rslora,
        use_dora=first.use_dora,
        modules_to_save=enclosing_modules(model, copied) or None,
    )
    with quiet_transformers():
        adapted = get_peft_model(model, config)
    for layers in low_rank[1:]:
        _set_dropout(model, layers)
    _adjust_copies(model, trained)
    return adapted


def _resolve(model: AlignModel, tower: Tower, lora: TowerLora) -> _TrainedLayers:
    """Finds the layers that `lora` names, and makes sure that each is trained in one way."""
    if lora.train_statistics and tower is TEXT:
        raise ValueError(
            "Expected text_lora.train_statistics to be false, but got true. The text tower has no BatchNorm: "
            "remove it, or name `norm` in text_lora.whole to train scale and shift of its LayerNorm."
        )
    whole = whole_layers(model, tower, lora.whole or [], lora.last_blocks)
    names = tower.default if lora.layers is None else lora.layers
    low_rank = low_rank_layers(model, tower, names, lora.last_blocks)
    both = [name for name in low_rank if name in whole]
    if both and lora.layers is not None:
        raise ValueError(
            f"Expected {tower.argument}.layers and {tower.argument}.whole to name different layers, but got "
            f"{both[0]} in both. A layer is trained whole or by a low-rank adapter: remove it from one of them."
        )
    following = whole_layers(model, tower, ["norm"], lora.last_blocks) if lora.train_statistics else []
    return _TrainedLayers(tower, lora, [name for name in low_rank if name not in both], whole, following)


def _set_dropout(model: AlignModel, layers: _TrainedLayers) -> None:
    """Sets the second tower's dropout: PEFT has one for all layers of an adapter, the first tower's."""
    dropout = layers.lora.dropout
    for name in layers.low_rank:
        layer = model.get_submodule(name)
        assert isinstance(layer, LoraLayer)
        layer.lora_dropout[ADAPTER] = nn.Dropout(dropout) if dropout else nn.Identity()


def _adjust_copies(model: AlignModel, trained: Iterable[_TrainedLayers]) -> None:
    """Lets statistics follow in PEFT's copies, and freezes the weights that no tower trains whole.

    PEFT trains every parameter of its copies, also of a BatchNorm that is copied for its statistics alone.
    """
    whole = {name for layers in trained for name in layers.whole}
    following = {name for layers in trained for name in layers.following}
    wrappers = [(name, module) for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    for outer, wrapper in wrappers:
        for inner, layer in list(wrapper.modules_to_save[ADAPTER].named_modules()):
            name = f"{outer}.{inner}".rstrip(".")
            if name in following:
                layer = FollowingBatchNorm2d(layer)
                model.set_submodule(f"{outer}.modules_to_save.default.{inner}".rstrip("."), layer)
            if name not in whole:
                for parameter in layer.parameters(recurse=False):
                    parameter.requires_grad = False
