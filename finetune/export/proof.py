"""Proof that a folder is the trained model: the witness, put into the folder by a fresh process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune.core.errors import CheckpointError
from finetune.core.files import fingerprint_file
from finetune.export.witness import TOLERANCE, require_close
from finetune.model.weights import Weights
from finetune.run.measurement import MEASUREMENT
from finetune.run.results import PROOF_FILE

WITNESS_FILE = "witness.safetensors"
CARD_FILE = "README.md"
READ_UNASKED = (
    "adapter_config.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
"""Files that some version of transformers reads wherever they lie, and that change weights, images or texts: none may
come into a folder after its proof."""

_WEIGHTS = re.compile(r"model[^/]*\.safetensors(\.index\.json)?")
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
        What `merge_proof.json` records of it: the kind, `max_abs_difference` or `max_relative_difference` by answer,
        the tolerance, and the versions of the fresh process.

    Raises:
        CheckpointError: If the folder does not open, a tensor is missing or left over, or an answer deviates by
            more than `TOLERANCE` or is not a number.
    """
    found = _run_fresh_process(folder, code)
    if found["loading"]:
        fault, names = next(iter(found["loading"].items()))
        raise CheckpointError(
            f"Expected {folder} to load without {fault}, but got {names[0]} and {len(names) - 1} more."
        )
    differences: dict[str, float] = found["differences"]
    if relative:
        differences = {name: value / (found["largest"][name] or 1.0) for name, value in differences.items()}
    require_close(str(folder), differences, exact)
    measure = "max_relative_difference" if relative else "max_abs_difference"
    return {
        "artifact": kind,
        measure: {name.removesuffix("_embeds"): value for name, value in differences.items() if name not in exact},
        "tolerance": TOLERANCE,
        "versions": found["versions"],
    }


def fingerprint_artifact(folder: Path) -> dict[str, str]:
    """Returns the hashes of what a proof speaks of, by name.

    `model` is that of the weights, whatever files they lie in; `config` and `witness` are those of one file each; all
    others go by the path of their file. Proof, card, measurement and hidden files are left out.

    Args:
        folder: A folder with its witness.

    Raises:
        OSError: If a file cannot be read, or weights are missing.
        SafetensorError: If weights are damaged.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    weights = [name for name in files if _WEIGHTS.fullmatch(name)]
    found = {"model": Weights(folder).fingerprint} if weights else {}
    names = {"config.json": "config", WITNESS_FILE: "witness"}
    for name, path in files.items():
        first = name.split("/")[0]
        if name not in weights and first not in (PROOF_FILE, CARD_FILE, MEASUREMENT) and not first.startswith("."):
            found[names.get(name, name)] = fingerprint_file(path)
    return found


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
        *_, last = ["no message", *done.stderr.strip().splitlines()]
        raise CheckpointError(
            f"Expected {folder} to open in a fresh process, without this package, but got: {last.rstrip('.')}. "
            "Please report it."
        )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
