"""Parts embedded by any number of processes: each takes what nobody has done or holds, and may come and go."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path

from finetune.core.bar import Bar
from finetune.core.errors import TableError
from finetune.inference.claims import claim
from finetune.inference.embedder import Embedder
from finetune.inference.parts import Entries, Part
from finetune.inference.vector_files import VectorFile
from finetune.inference.vectors import Facts, Piece

PAUSE = 0.5
"""Seconds after which a process looks again whether others have done the parts that they hold."""


@dataclass
class Tally:
    """What one process has done.

    Attributes:
        parts: How many parts it embedded.
        rows: How many images or texts.
        seconds: How long that took, without opening the model.
        found: How many parts were whole when it first looked.
        broken: Why parts cannot be read.
    """

    parts: int = 0
    rows: int = 0
    seconds: float = 0.0
    found: int = 0
    broken: list[Exception] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Images or texts per second."""
        return self.rows / self.seconds if self.seconds else 0.0


class PartFiles:
    """The files that parts become.

    Args:
        folder: The folder that they lie in.
        kind: Their format.
        embedder: The model.
        source: What is embedded, as the user named it.
    """

    def __init__(self, folder: Path, kind: type[VectorFile], embedder: Embedder, source: Sequence[str]) -> None:
        self.folder = folder
        self.embedder = embedder
        self._kind = kind
        self._source = tuple(source)
        self._space = json.dumps(asdict(embedder.space), sort_keys=True)
        self.stamp = cache(self._stamp)

    def file_of(self, part: Part) -> VectorFile:
        """Returns the file of a part, which need not be there."""
        return self._kind(self.folder / f"{part.name}{self._kind.suffix}")

    def claim_of(self, part: Part) -> Path:
        """Returns the file by which a process claims a part."""
        return self.folder / f".{part.name}.claim"

    def find(self, part: Part) -> Facts | None:
        """Returns what a part's file says, if it is whole and made from what the part and the model are now."""
        try:
            facts = self.file_of(part).read_facts()
        except OSError:  # absent, or no file of vectors
            return None
        return facts if facts.made_from == self.stamp(part) else None

    def write(self, part: Part, entries: Entries, note: Callable[[int], None]) -> None:
        """Embeds a part and writes its file, whole or not at all.

        Args:
            part: The part.
            entries: What it holds.
            note: Is told of each batch how many rows it holds.
        """
        ids, values, skipped = entries
        kept, vectors, unread = self.embedder.embed(values, note)
        piece = Piece([ids[at] for at in kept], [values[at] for at in kept], vectors)
        told = (self.embedder.space, self._source, len(kept), self.stamp(part), (*skipped, *unread))
        self.file_of(part).write(Facts(*told), [piece])

    def _stamp(self, part: Part) -> str:
        """Hashes all that a part's file is made from."""
        return sha256(f"{self._space}\n{part.stamp()}".encode(errors="backslashreplace")).hexdigest()

    def join_facts(self, parts: Sequence[Part]) -> Facts | None:
        """Returns what all files say together; None while one is not whole.

        Args:
            parts: All parts.
        """
        found = [facts for part in parts if (facts := self.find(part)) is not None]
        if len(found) < len(parts):
            return None
        skipped = tuple(one for facts in found for one in facts.skipped)
        rows = sum(facts.rows for facts in found)
        return Facts(self.embedder.space, self._source, rows, self.stamp_all(parts), skipped)

    def stamp_all(self, parts: Sequence[Part]) -> str:
        """Hashes all that the whole output is made from.

        Args:
            parts: All parts.
        """
        names = [(part.name, self.stamp(part)) for part in parts]
        return sha256(json.dumps(names).encode()).hexdigest()


def embed_parts(files: PartFiles, parts: Sequence[Part], is_over: Callable[[], bool]) -> Tally:
    """Embeds what nobody has done or holds, until all parts are done, by this process or others.

    A part that another process holds is waited for, and done here should that process die.

    Args:
        files: Where the parts go; the folder exists.
        parts: All parts.
        is_over: Whether the output is there already, so that parts are needed no more.

    Returns:
        What this process has done, and which parts cannot be read.
    """
    titles = [f"part {at} of {len(parts)}" for at in range(1, len(parts) + 1)]
    left = [(title, part) for title, part in zip(titles, parts, strict=True) if files.find(part) is None]
    tally = Tally(found=len(parts) - len(left))
    with Bar("parts", len(parts), "parts", f"{files.embedder.space.tower}s", tally.found) as bar:
        while left and not is_over():
            before = left
            left = [(title, part) for title, part in before if not _settle(files, part, title, tally, bar)]
            if len(before) == len(left):
                time.sleep(PAUSE)
    return tally


def _settle(files: PartFiles, part: Part, title: str, tally: Tally, bar: Bar) -> bool:
    """Embeds a part unless it is done or held; returns whether nothing is left to do of it."""
    if files.find(part) is not None:
        return True
    with claim(files.claim_of(part)) as held:
        if held is None:
            return False
        if files.find(part) is not None:  # done in between
            return True
        try:
            entries = part.read()
        except (TableError, OSError) as error:
            tally.broken.append(error)
            return True

        share = 0.0

        def note(rows: int) -> None:
            nonlocal share
            share += rows / len(entries.ids)
            bar.advance(rows / len(entries.ids), rows)
            tally.rows += rows
            held.renew()

        bar.title = title
        assert files.embedder.towers  # opened before time is taken
        started = time.perf_counter()
        files.write(part, entries, note)
        tally.parts, tally.seconds = tally.parts + 1, tally.seconds + time.perf_counter() - started
        bar.advance(1 - share)
        return True
