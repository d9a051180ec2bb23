"""The kinds of artifact, and the check of a folder of any kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import CONFIG_NAME

from finetune.core.errors import CheckpointError
from finetune.core.exchange import restore_folder
from finetune.core.files import read_json
from finetune.export.artifact import Artifact
from finetune.export.classifier import ImageClassifier
from finetune.export.merged import MergedCheckpoint
from finetune.export.proof import READ_UNASKED, WITNESS_FILE, FreshProcess, fingerprint_artifact
from finetune.model.checkpoint_folder import check_reach
from finetune.run.folder import RunFolder, require_finished
from finetune.run.results import PROOF_FILE

ARTIFACTS: tuple[type[Artifact], ...] = (MergedCheckpoint, ImageClassifier)
"""In the order in which a run exports them."""


def verify(folder: str | Path, kinds: Sequence[type[Artifact]] = ARTIFACTS) -> dict[str, Any]:
    """Repeats the proof of an exported folder on this machine.

    Args:
        folder: A folder with `merge_proof.json` and the files that it speaks of.
        kinds: The kinds of artifact of which the folder may be one.

    Returns:
        The new proof.

    Raises:
        CheckpointError: If a file is missing or is not the one that was proven, or the proof fails here.
    """
    folder = Path(folder)
    kind, proven, _ = check_files(folder, kinds)
    if (folder / CONFIG_NAME).is_file():  # a kind that transformers does not open has none
        check_reach(folder)
    with FreshProcess() as fresh:
        proof = kind.prove(folder, fresh)
    return {**proof, "sha256": proven}


def list_exported(folder: Path) -> list[Path]:
    """Returns the exported folders of a run, or any other folder alone.

    Args:
        folder: A run, or a folder that may be one of its exported folders.

    Raises:
        CheckpointError: If it is a run that is not finished.
    """
    run = RunFolder(folder)
    if (folder / PROOF_FILE).is_file() or not run.recipe.is_file():
        return [folder]
    require_finished(run)
    return [*find_exported(run).values()]


def find_exported(run: RunFolder) -> dict[type[Artifact], Path]:
    """Returns the folders that a run has exported, by what they are.

    Args:
        run: The run.
    """
    return {kind: folder for kind in ARTIFACTS if (folder := run.path / kind.name).is_dir()}


def check_files(
    folder: Path, kinds: Sequence[type[Artifact]] = ARTIFACTS
) -> tuple[type[Artifact], dict[str, str], list[str]]:
    """Checks that the files of an exported folder are those that were proven, and opens no model.

    Args:
        folder: See `verify`.
        kinds: Likewise.

    Returns:
        The kind of artifact; the hashes of what was proven, by name; and the names of files that the proof does not
        know, none of which any version of transformers reads unasked.

    Raises:
        CheckpointError: If a file is missing or is not the one that was proven.
    """
    restore_folder(folder)
    for name in (PROOF_FILE, WITNESS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"Expected {folder} to be a folder written by `finetune export`, but {name} is missing. "
                "Export the run again."
            )
    kind, recorded = _read_proof(folder / PROOF_FILE, kinds)
    try:
        found = fingerprint_artifact(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Expected the files of {folder} to be whole, but got: {str(error).rstrip('.')}. Export the run again."
        ) from error
    for name in dict.fromkeys((*recorded, *READ_UNASKED)):
        expected, digest = recorded.get(name, "none"), found.get(name, "none")
        if digest != expected:
            raise CheckpointError(
                f"Expected the {name} of {folder} to have SHA-256 {expected}, but got {digest}. "
                "It was changed after it was proven: export the run again."
            )
    return kind, {name: found[name] for name in recorded}, sorted(found.keys() - recorded.keys())


def _read_proof(path: Path, kinds: Sequence[type[Artifact]]) -> tuple[type[Artifact], dict[str, str]]:
    """The kind of artifact, and the hashes of its own files."""
    try:
        proof = read_json(path)
        kind = next(kind for kind in kinds if kind.name == proof["artifact"])
        return kind, {name: digest for name, digest in proof["sha256"].items() if name not in kind.origins}
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:  # no JSON, or not a proof's
        raise CheckpointError(
            f"Expected {path} to be a proof with its kind and hashes, but got {error!r}. Export the run again."
        ) from error
