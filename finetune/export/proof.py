"""Proof that a folder is the trained model: the witness, put into the folder by a fresh process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune.core.errors import CheckpointError
from finetune.core.files import fingerprint_file, fingerprint_weights
from finetune.export.witness import TOLERANCE, require_close
from finetune.run.results import PROOF_FILE

WITNESS_FILE = "witness.safetensors"
CARD_FILE = "README.md"
WEIGHTS = re.compile(r"model.*\.safetensors(\.index\.json)?")
PREPARATION = (
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""Files that decide how images and texts become the tensors that a witness begins with."""

_FRESH_PROCESS = Path(__file__).with_name("fresh_process.py")


def prove(folder: Path, kind: str, code: str, relative: bool, exact: tuple[str, ...]) -> dict[str, Any]:
    """Opens `folder` in a fresh process that knows only torch and transformers, and compares with its witness.

    Args:
        folder: A folder with its witness.
        kind: Name of the kind of artifact.
        code: Source text of `Artifact.answer`.
        relative: See `Artifact`.
        exact: Likewise.

    Returns:
        What `merge_proof.json` records: `max_abs_difference` or `max_relative_difference` by answer; hashes of weights,
        config, witness, processor and tokenizer; versions of the fresh process.

    Raises:
        CheckpointError: If the folder does not open, a tensor is missing or left over, or an answer deviates by
            more than `TOLERANCE` or is not a number.
    """
    fingerprints = fingerprint_artifact(folder)
    found = _run_fresh_process(folder, code)
    if found["loading"]:
        fault, names = next(iter(found["loading"].items()))
        raise CheckpointError(
            f"Expected {folder} to load without {fault}, but got {names[0]} and {len(names) - 1} more."
        )
    differences: dict[str, float] = found["differences"]
    if relative:
        differences = {name: value / found["largest"][name] for name, value in differences.items()}
    require_close(str(folder), differences, exact)
    measure = "max_relative_difference" if relative else "max_abs_difference"
    return {
        "artifact": kind,
        measure: {name.removesuffix("_embeds"): value for name, value in differences.items() if name not in exact},
        "tolerance": TOLERANCE,
        "sha256": fingerprints,
        "versions": found["versions"],
    }


def fingerprint_artifact(folder: Path) -> dict[str, str]:
    """Returns the hashes of what a proof speaks of: `model` for the weights, whatever files they lie in, `config`,
    `witness`, and all other files but the proof and the card by name.

    Args:
        folder: A folder with its witness.
    """
    names = {"config.json": "config", WITNESS_FILE: "witness"}
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in (PROOF_FILE, CARD_FILE)]
    weights = [path for path in files if WEIGHTS.fullmatch(path.name)]
    found = {names.get(path.name, path.name): fingerprint_file(path) for path in files if path not in weights}
    return {"model": fingerprint_weights(folder), **found} if weights else found


def _run_fresh_process(folder: Path, code: str) -> dict[str, Any]:
    """The report of `fresh_process.py`, run without the working directory on the import path and without a hub."""
    done = subprocess.run(
        [sys.executable, "-P", str(_FRESH_PROCESS), str(folder), str(folder / WITNESS_FILE)],
        input=code,
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
