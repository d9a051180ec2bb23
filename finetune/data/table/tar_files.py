"""Tar shards as cells: a row for each sample, as img2dataset and WebDataset write them."""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self, TypeAlias

from finetune.data.prepare.images import EXTENSIONS
from finetune.data.prepare.members import Member
from finetune.data.table.cells import Cells, check_columns
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.json_lines import as_cell, check_text, read_record

IMAGE, JSON, KEY = "image", "json", "\0key"
PICTURES = {extension.removeprefix(".") for extension in EXTENSIONS}

Sample: TypeAlias = dict[str, tarfile.TarInfo]  # by ending


def read_tar(path: Path, names: Sequence[str], faults: list[Fault]) -> Cells:
    """Reads columns of a tar. Members whose names are equal up to the first dot are a sample; that is its number.

    The columns are `image`, the address of the picture (see `Member`); each other ending, such as `txt`, with the
    text of that member; and the fields of the member `json`, which is opened where one of them is asked for.

    Args:
        path: The file, not compressed; faults name it as it is given here.
        names: The columns to keep.
        faults: Receives a fault for each sample without one picture, or with a member that cannot be read.

    Raises:
        TableFaultsError: If the file is no whole tar, has no samples, or none of them has one of the columns.
    """
    file, before = str(path), len(faults)
    samples = _list_samples(path, faults)
    endings = {ending for sample in samples.values() for ending in sample} - PICTURES - {JSON}
    columns, nested = dict.fromkeys([IMAGE, *sorted(endings)]), set[str]()
    records = _read_samples(path, samples, names, columns, nested, faults)
    cells = Cells.gather(file, [KEY, *names], enumerate(records))
    if not len(cells) and len(faults) == before:
        rule, repair = "a tar with samples", "Write KEY.jpg, KEY.txt and KEY.json for each, or remove the tar."
        raise TableFaultsError([Fault(file, None, None, None, rule, repair)])
    if len(cells) and (missing := check_columns(file, None, list(columns), names)):
        raise TableFaultsError([*faults, *missing])
    return Cells.of_file(file, cells.columns[KEY], {name: cells.columns[name] for name in names}, frozenset(nested))


class _Header(tarfile.TarInfo):
    """A member's header without date, owner and mode, whose reading would take most of the time of a tar."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Reads a header; whatever is not plain, or damaged, is left to tarfile."""
        kind, size, checksum = buf[156:157], buf[124:135], buf[148:154]
        is_plain = len(buf) == tarfile.BLOCKSIZE and kind in (tarfile.REGTYPE, tarfile.XHDTYPE) and not buf[345]
        if not (is_plain and size.isdigit() and checksum.isdigit()):
            return super().frombuf(buf, encoding, errors)
        if int(checksum, 8) != sum(buf[:148]) + sum(buf[156:]) + 8 * ord(" "):
            return super().frombuf(buf, encoding, errors)
        header = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        header.type, header.size = bytes(kind), int(size, 8)
        return header


def _list_samples(path: Path, faults: list[Fault]) -> dict[str, Sample]:
    """The members of each sample, in the order of their first members."""
    file, samples = str(path), dict[str, Sample]()
    try:
        with (
            tarfile.open(path, "r:", tarinfo=_Header, encoding="utf-8", errors="replace") as tar,
            path.open("rb") as content,
        ):
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                start, _, ending = name.partition(".")
                if not start or not member.isreg() or member.issparse():
                    continue  # hidden files, links, folders
                key, ending = f"{folder}{slash}{start}", ending.lower()
                if samples.setdefault(key, {}).setdefault(ending, member) is not member:
                    rule, repair = "each member once", "Give each sample a key of its own."
                    faults.append(Fault(file, key, None, member.name, rule, repair))
            # A damaged header, or the end of the file, ends the loop just as the blocks of zeros at a tar's end do.
            content.seek(tar.offset)
            if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"damaged or broken off at byte {tar.offset:,}")
    except (tarfile.TarError, OSError) as error:
        rule, repair = "a whole tar, not compressed", "Write or download it again, or decompress it."
        raise TableFaultsError([*faults, Fault(file, None, None, str(error), rule, repair)]) from error
    return samples


def _read_samples(
    path: Path,
    samples: dict[str, Sample],
    names: Sequence[str],
    columns: dict[str, None],
    nested: set[str],
    faults: list[Fault],
) -> Iterator[list[str]]:
    """Yields key and cells of each sample without fault, and notes the fields of its JSON and those with lists."""
    tar, is_json_needed = str(path.absolute()), not columns.keys() >= set(names)
    with path.open("rb") as content:

        def read(member: tarfile.TarInfo) -> str:
            content.seek(member.offset_data)
            return content.read(member.size).decode("utf-8-sig")

        for key, sample in samples.items():
            pictures = [member for ending, member in sample.items() if ending in PICTURES]
            if len(pictures) != 1:
                found = ", ".join(picture.name for picture in pictures) or None
                rule, repair = f"one picture, such as {key}.jpg", "Write the sample again, or remove it."
                faults.append(Fault(str(path), key, None, found, rule, repair))
                continue
            address = Member(tar, pictures[0].name, pictures[0].offset_data, pictures[0].size).address
            try:
                fields = read_record(read(sample[JSON])) if is_json_needed and JSON in sample else {}
                columns.update(dict.fromkeys(fields))
                nested.update(name for name in names if isinstance(fields.get(name), list | dict))
                yield [key, *_read_cells({**fields, IMAGE: address}, sample, names, read)]
            except (ValueError, RecursionError) as error:
                rule, repair = "an object in .json, and UTF-8 texts", "Write the sample again, or remove it."
                faults.append(Fault(str(path), key, None, str(error), rule, repair))


def _read_cells(
    fields: dict[str, object], sample: Sample, names: Sequence[str], read: Callable[[tarfile.TarInfo], str]
) -> list[str]:
    """The cells of a sample: members' texts, and fields where there is no such member."""
    own = {name: sample[name] for name in names if name in sample and name != IMAGE}
    return [check_text(read(own[name])) if name in own else as_cell(fields.get(name)) for name in names]
