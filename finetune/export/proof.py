"""Proof that a folder is the trained model: a witness, a check in a fresh process, later verification."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AlignModel

from finetune.core.errors import CheckpointError
from finetune.core.files import fingerprint_file, fingerprint_weights, read_json, write_bytes
from finetune.core.types import Batch
from finetune.model.towers import AlignTowers
from finetune.objectives import Classification

TOLERANCE = 1e-5
"""Largest difference in float32: of a component of the normalised embeddings, or of a logit relative to the largest."""

PROOF_FILE = "merge_proof.json"
WITNESS_FILE = "witness.safetensors"
_PREPARATION = (
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""Files that decide how images and texts become the tensors that a witness begins with."""

_INPUTS = ("pixel_values", "input_ids", "attention_mask")
_FRESH_PROCESS = Path(__file__).with_name("fresh_process.py")


def write_witness(towers: AlignTowers, batch: Batch, path: Path, head: Classification | None = None) -> None:
    """Records held-back inputs and what the trained, unmerged model makes of them in float32.

    Args:
        towers: The adapted model.
        batch: Rows that were not trained on.
        path: Where to write; parent folders exist.
        head: The trained head, whose logits are recorded beside the embeddings.
    """
    align = towers.cpu().float().eval().align
    inputs = {name: getattr(batch, name).cpu() for name in _INPUTS}
    record(align, inputs, path, head.cpu().logits if head else None)


@torch.no_grad()
def record(
    align: AlignModel, inputs: Mapping[str, Tensor], path: Path, logits: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Writes a witness: inputs, and what a model makes of them.

    Args:
        align: The model, float32 and on the CPU.
        inputs: Those of a batch, or a witness whose answers are replaced.
        path: Where to write; parent folders exist.
        logits: A head on the unnormalised image features.
    """
    tensors = {name: inputs[name] for name in _INPUTS} | _answer(align, inputs)
    if logits is not None:
        tensors["logits"] = logits(tensors["image_features"])
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def _answer(align: AlignModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    image = align.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    text = align.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
    return {
        "image_features": image,
        "image_embeds": normalize(image, dim=-1),
        "text_embeds": normalize(text, dim=-1),
        "temperature": align.temperature.detach(),
    }


@torch.no_grad()
def check_towers(align: AlignModel, witness: Path) -> dict[str, Tensor]:
    """Checks in this process that a merged model is the adapted one, before anything is derived from it.

    Args:
        align: The merged model, float32.
        witness: What the adapted model made of its inputs.

    Returns:
        The witness's tensors.

    Raises:
        CheckpointError: If a value deviates by more than `TOLERANCE` or is not a number.
    """
    recorded = load_file(witness)
    found = _answer(align, recorded)
    differences = {
        tower: float((found[f"{tower}_embeds"] - recorded[f"{tower}_embeds"]).abs().max())
        for tower in ("image", "text")
    }
    differences["image_features"] = _relative(found["image_features"], recorded["image_features"])
    temperature = float((found["temperature"] - recorded["temperature"]).abs())
    _judge("the merged model", "differences", differences, temperature)
    return recorded


@torch.no_grad()
def check_head(logits: Callable[[Tensor], Tensor], witness: Path) -> dict[str, Tensor]:
    """Checks that a head is the trained one, before anything is derived from it.

    Args:
        logits: The head, on unnormalised image features.
        witness: What the trained model made of its inputs.

    Returns:
        The witness's tensors.

    Raises:
        CheckpointError: If a logit deviates by more than `TOLERANCE` or is not a number.
    """
    recorded = load_file(witness)
    difference = _relative(logits(recorded["image_features"]), recorded["logits"])
    _judge("the head", "differences", {"logits": difference}, 0.0)
    return recorded


def _relative(found: Tensor, recorded: Tensor) -> float:
    return float((found - recorded).abs().max() / recorded.abs().max())


def prove(folder: Path, witness: Path) -> dict[str, Any]:
    """Opens `folder` in a fresh process that knows only torch and transformers, and compares with the witness.

    Args:
        folder: An `AlignModel` and `AlignProcessor` folder, or an `EfficientNetForImageClassification` folder
            with its image processor.
        witness: A file written by `write_witness`, with a head for a classifier's folder.

    Returns:
        What `merge_proof.json` records: `max_abs_difference` of the normalised embeddings of either tower, or
        `max_relative_difference` of the logits; hashes of weights, config, witness, processor and
        tokenizer, versions of the fresh process.

    Raises:
        CheckpointError: If the folder does not open, a tensor is missing or left over, or a value deviates by
            more than `TOLERANCE` or is not a number.
    """
    return _compare(folder, witness, _fingerprints(folder, witness))


def _compare(folder: Path, witness: Path, fingerprints: dict[str, str]) -> dict[str, Any]:
    """The proof, or the error, of a folder whose fingerprints are known."""
    found = _run_fresh_process(folder, witness)
    if found["loading"]:
        kind, names = next(iter(found["loading"].items()))
        raise CheckpointError(
            f"Expected {folder} to load without {kind}, but got {names[0]} and {len(names) - 1} more."
        )
    measure, differences = found["measure"], found["differences"]
    _judge(str(folder), measure, differences, found.get("temperature_difference", 0.0))
    return {
        measure: differences,
        "tolerance": TOLERANCE,
        "sha256": fingerprints,
        "versions": found["versions"],
    }


def _judge(subject: str, measure: str, differences: Mapping[str, float], temperature: float) -> None:
    """Raises the error of a proof that does not hold."""
    worst = max(differences.values(), key=lambda value: math.inf if math.isnan(value) else value)
    if not (worst <= TOLERANCE and temperature == 0):
        raise CheckpointError(
            f"Expected {subject} to reproduce the witness within {TOLERANCE} of the adapted model, but got "
            f"{measure} {differences} and a temperature {temperature} away. "
            "This is not the model that was trained; nothing was kept of it."
        )


def _fingerprints(folder: Path, witness: Path) -> dict[str, str]:
    """Hashes of what a proof speaks of; labels of a classifier stand in its config."""
    return {
        "model": fingerprint_weights(folder),
        "config": fingerprint_file(folder / "config.json"),
        "witness": fingerprint_file(witness),
        **{name: fingerprint_file(folder / name) for name in _PREPARATION if (folder / name).is_file()},
    }


def _run_fresh_process(folder: Path, witness: Path) -> dict[str, Any]:
    """The report of `fresh_process.py`, run without the working directory on the import path and without a hub."""
    done = subprocess.run(
        [sys.executable, "-P", str(_FRESH_PROCESS), str(folder), str(witness)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise CheckpointError(f"Expected {folder} to open with plain transformers, but got: {last[0]}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def verify(folder: Path) -> dict[str, Any]:
    """Repeats the proof of a merged or classifier folder on this machine.

    Args:
        folder: A folder with `merge_proof.json`, the witness and the weights it speaks of.

    Returns:
        The new proof.

    Raises:
        CheckpointError: If a file is missing or is not the one that was proven, or the proof fails here.
    """
    for name in (PROOF_FILE, WITNESS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"Expected {folder} to be a folder written by `finetune export`, but {name} is missing. "
                "Export the run again."
            )
    recorded = _read_digests(folder / PROOF_FILE)
    try:
        found = _fingerprints(folder, folder / WITNESS_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Expected model.safetensors and config.json of {folder} to be there and whole, but got: "
            f"{str(error).rstrip('.')}. Export the run again."
        ) from error
    is_older = recorded.keys().isdisjoint(_PREPARATION)  # from before processor and tokenizer were part of it
    for name in ("model", "config", "witness") + (() if is_older else _PREPARATION):
        expected, digest = recorded.get(name, "none"), found.get(name, "none")
        if digest != expected:
            raise CheckpointError(
                f"Expected the {name} of {folder} to have SHA-256 {expected}, but got {digest}. "
                "It was changed after it was proven: export the run again."
            )
    return _compare(folder, folder / WITNESS_FILE, found)


def _read_digests(path: Path) -> dict[str, str]:
    try:
        return dict(read_json(path)["sha256"])
    except (KeyError, TypeError, ValueError) as error:  # no JSON, or none that a proof is
        raise CheckpointError(
            f"Expected {path} to be a proof with its hashes, but got {error!r}. Export the run again."
        ) from error
