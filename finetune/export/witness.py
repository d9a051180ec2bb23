"""The witness of a training: held-back inputs and what the trained, unmerged model makes of them."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AlignModel

from finetune.core.errors import CheckpointError
from finetune.core.files import write_bytes
from finetune.core.types import Batch
from finetune.model.head import LinearHead
from finetune.model.towers import AlignTowers

TOLERANCE = 1e-5
"""Largest difference in float32: of a component of the normalised embeddings, or of a logit relative to the largest."""

INPUTS = ("pixel_values", "input_ids", "attention_mask")


def write_witness(towers: AlignTowers, batch: Batch, path: Path, head: LinearHead | None = None) -> None:
    """Records held-back inputs and what the trained, unmerged model makes of them in float32.

    Args:
        towers: The adapted model, which is moved to the CPU.
        batch: Rows that were not trained on.
        path: The file to write.
        head: The trained head, whose logits are recorded beside the embeddings.
    """
    towers = towers.cpu().float().eval()
    inputs = {name: getattr(batch, name).cpu() for name in INPUTS}
    inputs["pixel_values"] = towers.scale_pixels(inputs["pixel_values"])
    answers = ask_model(towers.align, inputs, head.cpu() if head else None)
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in {**inputs, **answers}.items()}))


def read_witness(path: Path) -> dict[str, Tensor]:
    """Reads what `write_witness` wrote.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Expected {path} to hold a run's witness, but got: {error}. Run it again.") from error


@torch.no_grad()
def ask_model(align: AlignModel, inputs: Mapping[str, Tensor], head: LinearHead | None = None) -> dict[str, Tensor]:
    """Returns what a model makes of a witness's inputs, by the names under which a witness records it.

    Args:
        align: The model, float32 and on the CPU.
        inputs: `pixel_values`, `input_ids` and `attention_mask`.
        head: A head on the image features, which answers with `logits`.
    """
    image = align.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    text = align.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
    answers = {
        "image_features": image,
        "image_embeds": normalize(image, dim=-1),
        "text_embeds": normalize(text, dim=-1),
        "temperature": align.temperature.detach(),
    }
    return answers if head is None else {**answers, "logits": head(image)}


def check_model(align: AlignModel, witness: Mapping[str, Tensor], head: LinearHead | None) -> None:
    """Checks in this process that a merged model is the adapted one, before anything is derived from it.

    Args:
        align: The merged model, float32.
        witness: What the adapted model made of its inputs.
        head: The trained head, where there is one.

    Raises:
        CheckpointError: If an answer deviates by more than `TOLERANCE` or is not a number.
    """
    found = ask_model(align, witness, head)
    differences = {name: float((found[name] - witness[name]).abs().max()) for name in found}
    for name in {"image_features", "logits"} & differences.keys():
        differences[name] /= float(witness[name].abs().max()) or 1.0
    require_close("the merged model", differences, exact=("temperature",))


def require_close(subject: str, differences: Mapping[str, float], exact: tuple[str, ...] = ()) -> None:
    """Refuses what does not reproduce a witness.

    Args:
        subject: What was asked.
        differences: By answer, how far it is from the one recorded.
        exact: The answers that may not differ at all.

    Raises:
        CheckpointError: If a difference is above `TOLERANCE`, is not a number, or is above 0 where none is allowed.
    """
    worst = max(differences.values(), key=lambda value: math.inf if math.isnan(value) else value)
    if not (worst <= TOLERANCE and all(differences[name] == 0 for name in exact)):
        raise CheckpointError(
            f"Expected {subject} to reproduce the witness within {TOLERANCE} of the adapted model, but got "
            f"differences {dict(differences)}. Do not use it: it is not the model that was trained."
        )
