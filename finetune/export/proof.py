"""Proof that a folder is the trained model: the witness, put into the folder by a fresh process."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

from finetune.core.errors import CheckpointError
from finetune.core.files import fingerprint_file
from finetune.export.witness import TOLERANCE, require_close
from finetune.model.base import CARD_FILE
from finetune.model.weights import Weights
from finetune.run.measurement import MEASUREMENT
from finetune.run.results import PROOF_FILE

WITNESS_FILE = "witness.safetensors"
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
REPORT = "report: "
"""Begins the line of a report on the process's standard output, as libraries may print there too."""

_FRESH_PROCESS = Path(__file__).with_name("fresh_process.py")


def prove(
    folder: Path, kind: str, code: str, relative: bool, exact: tuple[str, ...], fresh: "FreshProcess"
) -> dict[str, Any]:
    """Opens `folder` in a fresh process that knows only torch and transformers, and compares with its witness.

    Args:
        folder: A folder with its witness.
        kind: Name of the kind of artifact.
        code: Source text of `Artifact.answer`.
        relative: See `Artifact`.
        exact: Likewise.
        fresh: The process.

    Returns:
        What `merge_proof.json` records of it: the kind, `max_abs_difference` or `max_relative_difference` by answer,
        the tolerance, and the versions of the fresh process.

    Raises:
        CheckpointError: If the folder does not open, a tensor is missing or left over, or an answer deviates by
            more than `TOLERANCE` or is not a number.
    """
    found = fresh.ask(folder, code)
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


class FreshProcess:
    """A process that knows only torch and transformers, and opens folders as a user would: `fresh_process.py`.

    Starts at once, without the working directory on the import path and without a hub, and imports while its owner does
    other work. Used in a `with` statement.
    """

    def __init__(self) -> None:
        self._errors = TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by `__exit__`)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_FRESH_PROCESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it has nothing left to do, and writes nothing
        self._process.communicate()
        self._errors.close()

    def ask(self, folder: Path, code: str) -> dict[str, Any]:
        """Returns the report on a folder.

        Args:
            folder: A folder with its witness.
            code: Source text of `Artifact.answer`.

        Raises:
            CheckpointError: If the process ends without a report.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and the errors say why
            place = folder.absolute()  # this process may have another working directory by now
            self._process.stdin.write(json.dumps([str(place), str(place / WITNESS_FILE), code]) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(REPORT):
                report: dict[str, Any] = json.loads(line.removeprefix(REPORT))
                return report
        self._process.wait()
        self._errors.seek(0)
        *_, last = ["no message", *self._errors.read().strip().splitlines()]
        raise CheckpointError(
            f"Expected {folder} to open in a fresh process, without this package, but got: {last.rstrip('.')}. "
            "Please report it."
        )
