"""Tar shards as cells: a row for each sample, as img2dataset and WebDataset write them."""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, TypeAlias

from finetune.data.prepare.images import EXTENSIONS
from finetune.data.prepare.members import Member
from finetune.data.table.bounds import MOST_BYTES
from finetune.data.table.cells import Cells
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.json_lines import Fields, read_record

IMAGE, JSON, KEY = "image", "json", "\0key"
PICTURES = {extension.removeprefix(".") for extension in EXTENSIONS}

Sample: TypeAlias = dict[str, tarfile.TarInfo]  # by ending


def read_tar(path: Path, names: Sequence[str], faults: list[Fault]) -> Cells:
    """Reads columns of a tar. Members with the same name up to the first dot are one sample, known by that name.

    The columns are `image`, the address of the picture (see `Member`); each other ending, such as `txt`, with the
    text of that member; and the fields of the member `json`, which is opened only for a column found nowhere else.

    Args:
        path: The file, not compressed; faults name it as given here.
        names: The columns to keep.
        faults: Receives a fault for each sample that has not exactly one picture, or has an unreadable member.

    Raises:
        TableFaultsError: If the file is no whole tar, holds no sample, or lacks a column in all samples.
    """
    file, before = str(path), len(faults)
    samples = _list_samples(path, faults)
    endings = {ending for sample in samples.values() for ending in sample} - PICTURES - {JSON}
    fields = Fields(names, found=dict.fromkeys([IMAGE, *sorted(endings)]))
    cells = Cells.gather(file, [KEY, *names], enumerate(_read_samples(path, samples, fields, faults)))
    if not len(cells) and len(faults) == before:
        repair = "Write KEY.jpg, KEY.txt and KEY.json for each, or remove the tar."
        raise TableFaultsError([Fault(file, "a tar with samples", repair)])
    if len(cells) and (missing := fields.missing(file)):
        raise TableFaultsError([*faults, *missing])
    nested = frozenset(fields.nested)
    return Cells.of_file(file, cells.columns[KEY], {name: cells.columns[name] for name in names}, nested)


class _Header(tarfile.TarInfo):
    """A member's header without date, owner and mode, which would take most of the time to read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Reads a plain header, and leaves any other or damaged one to tarfile."""
        kind, size, checksum = buf[156:157], buf[124:135], buf[148:154]
        is_plain = len(buf) == tarfile.BLOCKSIZE and kind in (tarfile.REGTYPE, tarfile.XHDTYPE) and not buf[345]
        if not (is_plain and size.isdigit() and checksum.isdigit()):
            return cls._read_whole(buf, encoding, errors)
        if int(checksum, 8) != sum(buf[:148]) + sum(buf[156:]) + 8 * ord(" "):
            return cls._read_whole(buf, encoding, errors)
        header = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        header.type, header.size = bytes(kind), int(size, 8)
        return header._check()

    @classmethod
    def _read_whole(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        return super().frombuf(buf, encoding, errors)._check()

    def _check(self) -> Self:
        """Refuses long names and the like of more than `MOST_BYTES`, which tarfile would read at once."""
        if self.size < 0 or (self.type not in tarfile.REGULAR_TYPES and self.size > MOST_BYTES):
            raise tarfile.HeaderError(f"a header of {self.size:,} bytes")
        return self


def _list_samples(path: Path, faults: list[Fault]) -> dict[str, Sample]:
    """Lists the members of each sample; samples are in the order of their first members."""
    file, samples = str(path), dict[str, Sample]()
    try:
        with (
            tarfile.open(path, "r:", tarinfo=_Header, encoding="utf-8", errors="replace") as tar,
            path.open("rb") as content,
        ):
            length = path.stat().st_size
            for member in tar:
                if not 0 <= member.size <= length - member.offset_data and member.isreg():
                    raise tarfile.ReadError(f"{member.name!r} of {member.size:,} bytes in a tar of {length:,}")
                folder, slash, name = member.name.rpartition("/")
                start, _, ending = name.partition(".")
                if not start or not member.isreg() or member.issparse():
                    continue  # hidden files, links, folders
                key, ending = f"{folder}{slash}{start}", ending.lower()
                if samples.setdefault(key, {}).setdefault(ending, member) is not member:
                    rule, repair = "each member once", "Give each sample a key of its own."
                    faults.append(Fault(file, rule, repair, key, value=member.name))
            # A damaged header or the end of the file ends the loop, just as the zeros at a tar's end do.
            content.seek(tar.offset)
            if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"damaged or broken off at byte {tar.offset:,}")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:  # the last two of numbers out of range
        rule, repair = "a whole tar, not compressed", "Write or download it again, or decompress it."
        raise TableFaultsError([*faults, Fault(file, rule, repair, value=str(error))]) from error
    return samples


def _read_samples(path: Path, samples: dict[str, Sample], fields: Fields, faults: list[Fault]) -> Iterator[list[str]]:
    """Yields key and cells of each sample without fault."""
    tar, members = str(path.absolute()), fields.found.keys() & set(fields.names) - {IMAGE}
    is_json_needed = not fields.found.keys() >= set(fields.names)
    with path.open("rb") as content:

        def read(member: tarfile.TarInfo) -> str:
            if member.size > MOST_BYTES:
                raise ValueError(f"{member.name} of {member.size:,} bytes, more than {MOST_BYTES:,}")
            content.seek(member.offset_data)
            return content.read(member.size).decode("utf-8-sig")

        for key, sample in samples.items():
            pictures = [member for ending, member in sample.items() if ending in PICTURES]
            if len(pictures) != 1:
                found = ", ".join(picture.name for picture in pictures) or None
                rule, repair = f"one picture, such as {key}.jpg", "Write the sample again, or remove it."
                faults.append(Fault(str(path), rule, repair, key, value=found))
                continue
            address = Member(tar, pictures[0].name, pictures[0].offset_data, pictures[0].size).address
            try:
                record = read_record(read(sample[JSON])) if is_json_needed and JSON in sample else {}
                texts = {name: read(sample[name]) for name in members if name in sample}
                yield [key, *fields.read({**record, IMAGE: address, **texts})]
            except (ValueError, RecursionError) as error:
                rule, repair = "an object in .json, and UTF-8 texts", "Write the sample again, or remove it."
                faults.append(Fault(str(path), rule, repair, key, value=str(error)))
