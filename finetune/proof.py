"""Proof that a folder is the trained model: a witness, a check in a fresh process, later verification."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from finetune.batch import Batch
from finetune.errors import CheckpointError
from finetune.files import fingerprint_file, fingerprint_weights, read_json
from finetune.objectives import Classification
from finetune.towers.align import AlignTowers

TOLERANCE = 1e-5
"""Largest difference in float32: of a component of the normalised embeddings, or of a logit relative to the largest."""

PROOF_FILE = "merge_proof.json"
WITNESS_FILE = "witness.safetensors"
_FRESH_PROCESS = Path(__file__).with_name("fresh_process.py")


@torch.no_grad()
def write_witness(towers: AlignTowers, batch: Batch, path: Path, head: Classification | None = None) -> None:
    """Records held-back inputs and what the trained, unmerged model makes of them in float32.

    Args:
        towers: The adapted model.
        batch: Rows that were not trained on.
        path: Where to write; parent folders exist.
        head: The trained head, whose logits are recorded beside the embeddings.
    """
    towers = towers.cpu().float().eval()
    batch = Batch(*(tensor.cpu() for tensor in batch))
    embeddings = towers(batch)
    tensors = {
        "pixel_values": batch.pixel_values,
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "image_embeds": embeddings.image_embeds,
        "text_embeds": embeddings.text_embeds,
        "temperature": embeddings.temperature.detach(),
    }
    if head is not None:
        tensors["logits"] = head.cpu().logits(embeddings.image_features)
    staging = path.with_name(f".{path.name}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging)
    staging.replace(path)


def prove(folder: Path, witness: Path) -> dict[str, Any]:
    """Opens `folder` in a fresh process that knows only torch and transformers, and compares with the witness.

    Args:
        folder: An `AlignModel` and `AlignProcessor` folder, or an `EfficientNetForImageClassification` folder
            with its image processor.
        witness: A file written by `write_witness`, with a head for a classifier's folder.

    Returns:
        What `merge_proof.json` records: `max_abs_difference` of the normalised embeddings of either tower, or
        `max_relative_difference` of the logits; hashes of weights, config and witness, versions of the fresh
        process.

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
    worst = max(differences.values(), key=lambda value: math.inf if math.isnan(value) else value)
    temperature = found.get("temperature_difference", 0.0)
    if not (worst <= TOLERANCE and temperature == 0):
        raise CheckpointError(
            f"Expected {folder} to reproduce the witness within {TOLERANCE} of the adapted model, but got "
            f"{measure} {differences} and a temperature {temperature} away. "
            "The folder is not the model that was trained; nothing was kept of it."
        )
    return {
        measure: differences,
        "tolerance": TOLERANCE,
        "sha256": fingerprints,
        "versions": found["versions"],
    }


def _fingerprints(folder: Path, witness: Path) -> dict[str, str]:
    """Hashes of what a proof speaks of; labels of a classifier stand in its config."""
    return {
        "model": fingerprint_weights(folder),
        "config": fingerprint_file(folder / "config.json"),
        "witness": fingerprint_file(witness),
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
    recorded = read_json(folder / PROOF_FILE)["sha256"]
    found = _fingerprints(folder, folder / WITNESS_FILE)
    for name, digest in found.items():
        if digest != recorded[name]:
            raise CheckpointError(
                f"Expected the {name} of {folder} to have SHA-256 {recorded[name]}, but got {digest}. "
                "It was changed after it was proven: export the run again."
            )
    return _compare(folder, folder / WITNESS_FILE, found)
