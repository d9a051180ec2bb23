"""Images or texts embedded into a file or a folder, by this process alone or by many: what `finetune embed` does."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from finetune.core.cores import count_processes, count_share, find_local_rank
from finetune.core.errors import FileError, TableError
from finetune.data.checks.concerns import count
from finetune.inference.claims import claim
from finetune.inference.embed import find_device
from finetune.inference.embed_parts import PAUSE, PartFiles, Tally, embed_parts
from finetune.inference.embedder import Embedder
from finetune.inference.outputs import Output
from finetune.inference.parts import Part
from finetune.inference.vectors import Facts


class Written(NamedTuple):
    """What became of the images or texts.

    Attributes:
        facts: What the output says of itself.
        tally: What this process has done of it.
    """

    facts: Facts
    tally: Tally


def write_vectors(embedder: Embedder, parts: Sequence[Part], source: Sequence[str], output: Output) -> Written:
    """Embeds parts into an output. What is whole is not made again, and other processes may do the same at once.

    Args:
        embedder: The model.
        parts: What is embedded.
        source: The same as the user named it.
        output: Where the vectors go.

    Raises:
        FileExistsError: If something else is there that may not be replaced.
        TableError: If a part cannot be read, once all others are done, or nothing can.
    """
    files = PartFiles(output.parts, output.kind, embedder, source)
    wanted = files.stamp_all(parts)

    def find_output() -> Facts | None:
        found = output.find()
        return found if found is not None and found.made_from == wanted else None

    tally = Tally(found=len(parts))
    if (found := find_output()) is not None:
        return Written(found, tally)
    try:
        output.begin(embedder.space, source, [files.file_of(part) for part in parts])
        tally = embed_parts(files, parts, lambda: find_output() is not None)
        _require_whole(tally)
        while find_output() is None:
            with claim(output.claim) as held:
                if held is None:
                    time.sleep(PAUSE)
                elif find_output() is None:
                    _end(files, parts, output)
    except (FileExistsError, FileNotFoundError):
        if find_output() is None:  # else another process has done the rest, and removed the parts
            raise
    output.tidy()
    found = find_output()
    assert found is not None
    return Written(found, tally)


def _require_whole(tally: Tally) -> None:
    if tally.broken:
        number = len(tally.broken)
        raise TableError(
            f"{tally.broken[0]} {count(number, 'part', 'parts')} of what is embedded cannot be read; all others are "
            "done. Run the command again once that is repaired: it goes on where it was."
        )


def _end(files: PartFiles, parts: Sequence[Part], output: Output) -> None:
    """Makes the output of its parts, once all are whole."""
    facts = files.join_facts(parts)
    if facts is None:
        raise FileError(
            f"Expected all parts in {output.parts} to stay as they were written, but some have changed. Run the "
            "command again, and no other that writes there."
        )
    if not facts.rows:
        output.tidy()
        first = f", the first as {facts.skipped[0].place} is: {facts.skipped[0].reason}" if facts.skipped else ""
        raise TableError(
            f"Expected something to embed in {', '.join(facts.source)}, but "
            f"{count(len(facts.skipped), 'row was', 'rows were')} left out{first}."
        )
    for part in parts:
        files.claim_of(part).unlink(missing_ok=True)  # of processes that were killed
    output.end(facts, [files.file_of(part) for part in parts])


def share_machine(accelerator: str) -> torch.device:
    """Takes this process's share of the machine: its number of cores, and the device of its own.

    Args:
        accelerator: As for `find_device`.

    Returns:
        The device where the model runs.

    Raises:
        RecipeError: If this machine has no such device.
    """
    device = find_device(accelerator, "--device")
    if count_processes() > 1:
        torch.set_num_threads(count_share())
    if device.type == "cpu":
        return device
    return torch.device(device.type, find_local_rank() % torch.accelerator.device_count())
