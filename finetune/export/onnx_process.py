"""Asks ONNX files as a server would and compares with their witness. Run by path, never imported.

The process has onnxruntime and NumPy; it can import neither torch nor this package. A tensor of the witness is named
`FILE.CASE.NAME`. Each case is asked in batches of 1, 2 and all its rows. Prints JSON.
"""

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]


def compare(session: onnxruntime.InferenceSession, case: Tensors) -> dict[str, float]:
    """Returns the largest difference of a case's outputs as they are, and once normalised."""
    (output,) = (one.name for one in session.get_outputs())
    inputs = {one.name: case[one.name] for one in session.get_inputs()}
    rows = len(next(iter(inputs.values())))
    found: dict[str, float] = {}
    for count in sorted({1, 2, rows} & set(range(rows + 1))):
        (answer,) = session.run([output], {name: tensor[:count] for name, tensor in inputs.items()})
        for name in sorted(case.keys() - inputs.keys()):
            expected = case[name][:count]
            if name == output:
                largest = float(np.abs(expected).max()) or 1.0
                note(found, "raw", answer / largest, expected / largest)
            if output != "logits":
                note(found, "normalised", normalise(answer), normalise(expected))
    return found


def note(found: dict[str, float], measure: str, answer: NDArray[Any], expected: NDArray[Any]) -> None:
    """Keeps the largest difference; what is no number stays."""
    if answer.shape != expected.shape:
        raise ValueError(f"shape {answer.shape} where {expected.shape} is expected")
    found[measure] = float(np.maximum(found.get(measure, 0.0), np.abs(answer - expected).max()))


def normalise(vectors: NDArray[Any]) -> NDArray[Any]:
    """Returns rows of length 1."""
    scaled: NDArray[Any] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


def report(folder: Path, witness: str) -> dict[str, object]:
    """Returns the differences by file."""
    from safetensors.numpy import load_file

    recorded: Tensors = load_file(folder / witness)
    files: dict[str, dict[str, float]] = {}
    for (file, _), names in groupby(sorted(recorded), key=lambda name: tuple(name.split(".")[:2])):
        session = onnxruntime.InferenceSession(folder / f"{file}.onnx", providers=["CPUExecutionProvider"])
        found = compare(session, {name.split(".")[2]: recorded[name] for name in names})
        kept = files.setdefault(file, {})
        for measure, value in found.items():
            kept[measure] = float(np.maximum(kept.get(measure, 0.0), value))
    return {"differences": files, "versions": {"onnxruntime": onnxruntime.__version__}}


if __name__ == "__main__":
    for absent in ("torch", "finetune"):
        sys.modules[absent] = None  # type: ignore[assignment]  # an import of it fails now, as on a user's server
    print(json.dumps(report(Path(sys.argv[1]), sys.argv[2])))
