"""Image tower and trained head as a plain `EfficientNetForImageClassification` folder that carries its proof."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AlignModel, EfficientNetConfig, EfficientNetForImageClassification, PretrainedConfig
from transformers.models.efficientnet.modeling_efficientnet import round_filters

from finetune.core.errors import CheckpointError
from finetune.core.files import fingerprint_file, fingerprint_weights, write_folder, write_json, write_text
from finetune.export.proof import PROOF_FILE, WITNESS_FILE, check_head, prove, record
from finetune.model.base import load_model, resolve_checkpoint
from finetune.model.head import Head, read_head
from finetune.model.interpolate import interpolate
from finetune.run.results import format_measured

_SYMMETRIC = frozenset({"swish", "silu", "gelu", "relu"})
"""Activations with act(a) - act(-a) = a for every a."""


def export_classifier(
    checkpoint: str,
    image_processor: Any,
    head: Path,
    witness: Path,
    output: Path,
    overwrite: bool = False,
    alpha: float = 1.0,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Joins a merged image tower and its head and writes the classifier, once it is proven.

    Away from alpha 1 and scale 1 the head first has to reproduce the witness in this process; the answers of the
    point between its start and itself to the same inputs then are the folder's witness.

    Args:
        checkpoint: The `AlignModel` that the head was trained on, adapters merged, at the same `alpha`: hub id, local
            folder, or `align-mini`.
        image_processor: The image processor it was trained with.
        head: A file written by `write_head`.
        witness: Held-back inputs with the trained model's logits.
        output: The folder to write: `model.safetensors`, `config.json` with the class names,
            `preprocessor_config.json`, `merge_proof.json` and the witness.
        overwrite: Whether an existing `output` is replaced.
        alpha: See `interpolate_head`.
        scale: See `interpolate_head`.

    Returns:
        The content of `merge_proof.json`.

    Raises:
        FileExistsError: If `output` exists and `overwrite` is false.
        CheckpointError: If the checkpoint, the head or the proof does not hold. No folder is left then.
        RecipeError: If `alpha` is not in [0, 1], likewise.
    """
    with write_folder(output, overwrite) as staging:
        align, trained = load_model(checkpoint), read_head(head)
        if alpha == scale == 1:
            joined = trained
            shutil.copyfile(witness, staging / WITNESS_FILE)
        else:
            inputs = check_head(trained.logits, witness)
            joined = interpolate_head(trained, alpha, scale)
            record(align, inputs, staging / WITNESS_FILE, joined.logits)
        model = build_classifier(align, joined)
        model.save_pretrained(staging, safe_serialization=True)
        image_processor.save_pretrained(staging)
        proof = prove(staging, staging / WITNESS_FILE)
        proof |= {"alpha": alpha, "scale": scale}
        proof["sha256"]["merged"] = fingerprint_weights(resolve_checkpoint(checkpoint))
        proof["sha256"]["head"] = fingerprint_file(head)
        write_json(staging / PROOF_FILE, proof)
    return proof


def interpolate_head(head: Head, alpha: float, scale: float = 1.0) -> Head:
    """The head between its start and what was trained of it, its logits multiplied by a number.

    Args:
        head: The trained head.
        alpha: 1 gives the head itself, 0 what it started from.
        scale: What the logits are multiplied by: it changes how sure the classifier is, and no ranking.
    """
    found = interpolate(head.start, head.trained, alpha)
    return head._replace(weight=scale * found["weight"], bias=scale * found["bias"])


@torch.no_grad()
def build_classifier(align: AlignModel, head: Head) -> EfficientNetForImageClassification:
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


def _classifier_config(vision: Any, head: Head) -> EfficientNetConfig:
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


def write_classifier_card(
    folder: Path, name: str, base_model: str, metrics: Mapping[str, Any], proof: Mapping[str, Any]
) -> None:
    """Writes `README.md` of a classifier's folder: what it is, how it did, how to load it.

    Args:
        folder: The classifier's folder.
        name: The run's name.
        base_model: Name of the checkpoint that was fine-tuned.
        metrics: The content of `metrics.json`.
        proof: The content of `merge_proof.json`.
    """
    write_text(
        folder / "README.md",
        f"""---
base_model: {base_model}
library_name: transformers
pipeline_tag: image-classification
tags: [align, efficientnet]
---

# {name}

The image tower of `{base_model}` with a linear head, fine-tuned by align-finetune, as a plain
`EfficientNetForImageClassification`; the classes are in `config.json`. {format_measured(metrics)}

A fresh process with plain transformers {proof["versions"]["transformers"]} reproduced this model's
logits within {proof["max_relative_difference"]["logits"]:.1e} of the largest (`merge_proof.json`);
`finetune verify` repeats that on any machine.

```python
from transformers import pipeline

classify = pipeline("image-classification", model="{folder.name}")
print(classify("photo.png"))
```
""",
    )
