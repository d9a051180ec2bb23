"""What of a folder would be sent to the model hub, and what must not be: checked before anything is asked of it."""

import json
import re
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from finetune.core.errors import CheckpointError, RecipeError, did_you_mean
from finetune.core.files import fingerprint_file, read_json, read_text
from finetune.export.artifacts import check_files
from finetune.export.local_paths import names_place
from finetune.export.onnx_proof import ONNX_FOLDER, ONNX_WITNESS
from finetune.export.proof import READ_UNASKED, WITNESS_FILE
from finetune.model.adapter import ADAPTER_FILES, check_adapter
from finetune.model.base import CARD_FILE
from finetune.run.folder import RunFolder, require_finished
from finetune.run.measurement import MEASUREMENT
from finetune.run.results import PROOF_FILE

_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
_WITNESSES = (WITNESS_FILE, f"{ONNX_FOLDER}/{ONNX_WITNESS}")


class SentFile(NamedTuple):
    """One file that is sent.

    Attributes:
        name: Its path in the repository.
        path: Where it lies.
        size: Bytes.
        sha256: Of its bytes.
    """

    name: str
    path: Path
    size: int
    sha256: str


class Upload(NamedTuple):
    """What is sent of a folder.

    Attributes:
        folder: The folder.
        files: The files, by name.
        left_out: The names of files and folders in it that are not sent.
    """

    folder: Path
    files: tuple[SentFile, ...]
    left_out: tuple[str, ...]

    @property
    def names(self) -> set[str]:
        """The paths in the repository."""
        return {file.name for file in self.files}

    @property
    def card(self) -> str:
        """The model card."""
        return read_text(self.folder / CARD_FILE)

    @property
    def has_witness(self) -> bool:
        """Whether held-back images and texts are among what is sent."""
        return not self.names.isdisjoint(_WITNESSES)


def plan_upload(model: str | Path, witness: bool = True) -> Upload:
    """Finds what would be sent of a folder, and refuses what must not be. Reaches no network.

    The measurement is never sent: it holds the captions and file names of the test rows. Hidden files are not, either.

    Args:
        model: A finished run, of which the merged checkpoint is taken; an exported folder; or a run's adapter.
        witness: Whether the held-back images and texts that prove the folder are sent.

    Raises:
        RecipeError: If there is no such folder.
        CheckpointError: If the files are not those that were proven, one does not belong, or one names a place of this
            machine or a token.
    """
    folder = find_folder(Path(model).expanduser())
    strangers = _check_adapter(folder) if (folder / ADAPTER_FILES[0]).is_file() else check_files(folder)[2]
    if strangers:
        raise CheckpointError(
            f"Expected {folder} to hold nothing but what was exported, but got {strangers[0]}"
            f"{f' and {len(strangers) - 1} more' if len(strangers) > 1 else ''}. Move it elsewhere."
        )
    if not (folder / CARD_FILE).is_file():
        raise CheckpointError(f"Expected {folder} to have a model card, but {CARD_FILE} is missing. Export it again.")
    left_out = {MEASUREMENT, *(() if witness else _WITNESSES)}
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sent = {
        name: path
        for name, path in paths.items()
        if name not in left_out and name.split("/")[0] not in left_out and not _is_hidden(name)
    }
    for path in sent.values():
        _refuse_secrets(path, folder)
    files = (SentFile(name, path, path.stat().st_size, fingerprint_file(path)) for name, path in sent.items())
    unsent = (
        name if name in left_out or "/" not in name else name.split("/")[0] for name in paths.keys() - sent.keys()
    )
    return Upload(folder, tuple(files), tuple(sorted(set(unsent))))


def find_folder(model: Path) -> Path:
    """Returns the folder that is meant: of a run its merged checkpoint.

    Args:
        model: A finished run, or a folder.

    Raises:
        RecipeError: If there is no such folder.
        CheckpointError: If the run is unfinished, or has no merged checkpoint.
    """
    run = RunFolder(model)
    if run.recipe.is_file():
        require_finished(run)
        if not run.merged.is_dir():
            raise CheckpointError(
                f"Expected {model} to have a merged checkpoint, but it trained a head alone. "
                f"Publish its image classifier: {run.classifier}"
            )
        return run.merged
    if not model.is_dir():
        beside = [str(path) for path in model.parent.iterdir() if path.is_dir()] if model.parent.is_dir() else []
        repair = did_you_mean(str(model), beside) if beside else "Correct the path."
        raise RecipeError(f"Expected {model} to be a run or an exported folder, but it is no folder. {repair}")
    return model


def is_of_model(name: str) -> bool:
    """Whether a file of a repository has the name of one that an exported folder may hold, save for its card.

    Args:
        name: Its path in the repository.
    """
    own = (*READ_UNASKED, *ADAPTER_FILES, "config.json", WITNESS_FILE, PROOF_FILE)
    return (
        name in own
        or name.startswith(f"{ONNX_FOLDER}/")
        or re.fullmatch(r"model[^/]*\.(safetensors|json)", name) is not None
    )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _check_adapter(folder: Path) -> list[str]:
    """Checks an adapter, and returns the names of files that do not belong to it."""
    check_adapter(folder)
    proof = folder.parent / RunFolder(folder.parent).merged.name / PROOF_FILE
    weights = fingerprint_file(folder / ADAPTER_FILES[1])
    if proof.is_file() and (expected := read_json(proof)["sha256"].get("adapter", weights)) != weights:
        raise CheckpointError(
            f"Expected {folder / ADAPTER_FILES[1]} to have SHA-256 {expected}, as the proof of the merged checkpoint "
            f"says, but got {weights}. It was changed after it was trained: put it back."
        )
    known = {*READ_UNASKED, *ADAPTER_FILES, CARD_FILE}
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in known and not _is_hidden(name))


def _refuse_secrets(path: Path, folder: Path) -> None:
    """Refuses a file that says where things lie on this machine, or holds a token."""
    content = _read_words(path)
    if _TOKEN.search(content):
        raise CheckpointError(
            f"Expected {path} to hold no secret, but got a token of the hub. Remove it, and revoke it."
        )
    found = next((place for place in map(re.search, _own_places(folder), repeat(content)) if place), None)
    if found is not None:
        line = content[: found.start()].count(b"\n") + 1
        raise CheckpointError(
            f"Expected {path} to name no place of this machine, but line {line} names {found[0].decode()!r}. Remove it."
        )
    if path.match("*config.json") and names_place(path):
        raise CheckpointError(
            f"Expected {path} to name no place of a machine, but a value is an absolute path. Export the run again."
        )


def _read_words(path: Path) -> bytes:
    """What of a file is text: all of it, or of safetensors the header, as numbers hold any bytes by chance."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size))


_BEFORE_PLACE = rb"(?:(?<![\w.-])|(?<=\\[nrt]))"
"""A path does not go on from a word, as in a link's `owner/app`; a line break in JSON is a letter after a backslash."""


def _own_places(folder: Path) -> Iterator[bytes]:
    """Patterns of the folders that would tell of this machine, as texts and JSON write them."""
    for place in dict.fromkeys((Path.home(), Path.cwd(), folder.resolve().parent)):
        if place != Path(place.anchor):
            written = (json.dumps(str(place), ensure_ascii=ascii_alone)[1:-1] for ascii_alone in (True, False))
            for text in dict.fromkeys((str(place), *written)):
                place_there = re.escape(text.encode(errors="surrogateescape"))
                yield _BEFORE_PLACE + place_there + rb"(?![\w.-])[^\s\"'`)]*"
