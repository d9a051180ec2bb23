"""Proof that ONNX files compute what the merged model does: a fresh process with onnxruntime, and without torch."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune.core.errors import CheckpointError

ONNX_FOLDER = "onnx"
ONNX_WITNESS = "witness.safetensors"
ONNX_TOLERANCE = 1e-4
"""Largest difference in float32: of a raw output as a share of the largest, or of a component once normalised."""

_PROCESS = Path(__file__).with_name("onnx_process.py")


def has_onnx(folder: Path) -> bool:
    """Returns whether a folder has ONNX files that can be proven.

    Args:
        folder: An exported folder.
    """
    return (folder / ONNX_FOLDER / ONNX_WITNESS).is_file()


def prove_onnx(folder: Path) -> dict[str, Any]:
    """Puts the inputs of the ONNX witness into the files, in a fresh process that cannot import torch.

    Args:
        folder: An exported folder with ONNX files.

    Returns:
        What `merge_proof.json` records of them: by file the largest differences of its outputs as they are (`raw`) and,
        of features, once normalised; the tolerance; the version of onnxruntime.

    Raises:
        CheckpointError: If a file does not open, or an output deviates by more than `ONNX_TOLERANCE` or is no number.
    """
    done = subprocess.run(
        [sys.executable, "-P", str(_PROCESS), str(folder / ONNX_FOLDER), ONNX_WITNESS],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        *_, last = ["no message", *done.stderr.strip().splitlines()]
        repair = "Run: pip install 'align-finetune[onnx]'." if "No module named" in last else "Please report it."
        raise CheckpointError(
            f"Expected the ONNX files of {folder} to open in a fresh process, but got: {last.rstrip('.')}. {repair}"
        )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for name, differences in report["differences"].items():
        if not all(math.isfinite(value) and value <= ONNX_TOLERANCE for value in differences.values()):
            raise CheckpointError(
                f"Expected {ONNX_FOLDER}/{name}.onnx to compute what the merged model does within {ONNX_TOLERANCE}, "
                f"but got differences {differences}. Export without --onnx, and please report it."
            )
    return {**report, "tolerance": ONNX_TOLERANCE}
