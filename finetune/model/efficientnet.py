"""A plain EfficientNet classifier that computes a linear head on ALIGN's image features."""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import AlignModel, EfficientNetConfig, EfficientNetForImageClassification, PretrainedConfig
from transformers.models.efficientnet.modeling_efficientnet import round_filters

from finetune.core.errors import CheckpointError
from finetune.model.head import LinearHead

_SYMMETRIC = frozenset({"swish", "silu", "gelu", "relu"})
"""Activations with act(a) - act(-a) = a for every a."""


@torch.no_grad()
def build_classifier(align: AlignModel, head: LinearHead) -> EfficientNetForImageClassification:
    """An EfficientNet whose logits are those of the head on ALIGN's image features.

    ALIGN's image tower is EfficientNet without its last convolution, BatchNorm and activation. The convolution
    added here computes a / s and -a / s of each feature a, its BatchNorm nothing, and the classifier takes
    s (act(a / s) - act(-a / s)) = a at each position, whose mean over positions is the image feature.

    Args:
        align: The merged model, float32.
        head: Its head.

    Raises:
        CheckpointError: If the head is for features of another width, or the tower's activation or last layer
            does not allow the construction.
    """
    tower = align.vision_model
    width = head.weight.shape[1]
    config = _classifier_config(tower.config, head)
    if width != align.config.projection_dim or 2 * width > config.hidden_dim:
        raise CheckpointError(
            f"Expected the head to read {align.config.projection_dim} features, at most {config.hidden_dim // 2}, "
            f"but got {width}. Use the checkpoint the head was trained on."
        )
    scale = feature_scale(tower)
    model: Any = EfficientNetForImageClassification(config)
    added = model.efficientnet.load_state_dict(tower.state_dict(), strict=False)
    assert not added.unexpected_keys, added
    assert all(".top_" in name for name in added.missing_keys), added
    top, norm, linear = model.efficientnet.encoder.top_conv, model.efficientnet.encoder.top_bn, model.classifier
    identity = torch.eye(width)[:, :, None, None] / scale
    top.weight.copy_(torch.cat([identity, -identity, torch.zeros_like(top.weight[2 * width :])]))
    norm.weight.fill_(1)
    norm.bias.zero_()
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    linear.weight.zero_()
    linear.weight[:, :width] = head.weight * scale
    linear.weight[:, width : 2 * width] = -head.weight * scale
    linear.bias.copy_(head.bias)
    classifier: EfficientNetForImageClassification = model.eval()
    return classifier


def _classifier_config(vision: Any, head: LinearHead) -> EfficientNetConfig:
    """The tower's own settings, with the width of EfficientNet's last convolution, the class names and their kind."""
    general = {"model_type", *PretrainedConfig().to_dict()}
    settings = {name: value for name, value in vision.to_dict().items() if name not in general}
    settings["hidden_dim"] = round_filters(vision, 1280)  # pooling window, too: larger than any feature map
    return EfficientNetConfig(
        **settings,
        id2label=dict(enumerate(head.classes)),
        label2id={name: index for index, name in enumerate(head.classes)},
        problem_type="multi_label_classification" if head.is_multilabel else None,
    )


@torch.no_grad()
def feature_scale(tower: Any) -> float:
    """The s of `build_classifier`: a power of two, so that dividing and multiplying by it round nothing.

    With relu6, a / s must lie within 6 for every feature of every image. The tower's activations lie in [0, 6]
    and its gates in [0, 1], so the weights after them bound the features, whatever the image.

    Args:
        tower: An `AlignVisionModel`, adapters merged.

    Raises:
        CheckpointError: If the activation allows no such construction.
    """
    activation = tower.config.hidden_act
    if activation in _SYMMETRIC:
        return 1.0
    if activation != "relu6":
        raise CheckpointError(
            f"Expected the image tower's activation to be one of {', '.join(sorted(_SYMMETRIC))}, relu6, but got "
            f"{activation!r}. Use the merged folder: an image classifier cannot be made of this tower."
        )
    bound: Tensor = torch.zeros((), dtype=torch.float64)
    for block in reversed(tower.encoder.blocks):
        layer = block.projection
        kernel, norm = layer.project_conv.weight[:, :, 0, 0].double(), layer.project_bn
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        ends = [
            (6 * part.sum(1) - norm.running_mean) * gain + norm.bias
            for part in (kernel.clamp(min=0), kernel.clamp(max=0))
        ]
        bound = bound + torch.stack(ends).abs().amax(0)
        if not layer.apply_dropout:  # nothing of the blocks before is added to its output
            break
    return 2.0 ** math.ceil(math.log2(max(6.0, 1.01 * float(bound.max())) / 6))
