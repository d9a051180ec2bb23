"""Tar shards as cells: a row for each sample, as img2dataset and WebDataset write them."""

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import BinaryIO, TypeAlias

from finetune.data.prepare.members import Member
from finetune.data.remote.transfer import RemoteError
from finetune.data.table.bounds import MOST_BYTES
from finetune.data.table.cells import Cells
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.json_lines import Fields, read_record
from finetune.data.table.tar_index import PICTURES, Entry, Tar

IMAGE, JSON, KEY = "image", "json", "\0key"

Sample: TypeAlias = dict[str, Entry]  # by ending


def read_tar(tar: Tar, names: Sequence[str], faults: list[Fault]) -> Iterator[Cells]:
    """Reads columns of a tar, some rows at a time.

    Members with the same name up to the first dot are one sample, known by that name.

    The columns are `image`, the address of the picture (see `Member`); each other ending, such as `txt`, with the
    text of that member; and the fields of the member `json`, which is opened only for a column found nowhere else.

    Args:
        tar: The file, not compressed.
        names: The columns to keep.
        faults: Receives a fault for each sample that has not exactly one picture, or has an unreadable member.

    Raises:
        TableFaultsError: If the file is no whole tar, holds no sample, or lacks a column in all samples.
    """
    file, before = tar.name, len(faults)
    samples = _list_samples(tar, faults)
    endings = {ending for sample in samples.values() for ending in sample} - PICTURES - {JSON}
    fields = Fields(names, found=dict.fromkeys([IMAGE, *sorted(endings)]))
    count = 0
    for part in Cells.of_records(file, [KEY, *names], enumerate(_read_samples(tar, samples, fields, faults))):
        count += len(part)
        keys = part.columns[KEY]
        yield Cells.of_file(file, keys, part.select(names).columns, frozenset(fields.nested))
    if not count and len(faults) == before:
        repair = "Write KEY.jpg, KEY.txt and KEY.json for each, or remove the tar."
        raise TableFaultsError([Fault(file, "a tar with samples", repair)])
    if count and (missing := fields.missing(file)):
        raise TableFaultsError([*faults, *missing])


def _list_samples(tar: Tar, faults: list[Fault]) -> dict[str, Sample]:
    """Lists the members of each sample; samples are in the order of their first members."""
    samples = dict[str, Sample]()
    try:
        for entry in tar.entries():
            key = entry.key
            if samples.setdefault(key, {}).setdefault(entry.ending, entry) is not entry:
                rule, repair = "each member once", "Give each sample a key of its own."
                faults.append(Fault(tar.name, rule, repair, key, value=entry.name))
    except RemoteError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:  # the last two of numbers out of range
        rule, repair = "a whole tar, not compressed", "Write or download it again, or decompress it."
        raise TableFaultsError([*faults, Fault(tar.name, rule, repair, value=str(error))]) from error
    return samples


def _read_samples(tar: Tar, samples: dict[str, Sample], fields: Fields, faults: list[Fault]) -> Iterator[list[str]]:
    """Yields key and cells of each sample without fault."""
    members = fields.found.keys() & set(fields.names) - {IMAGE}
    is_json_needed = not fields.found.keys() >= set(fields.names)
    with _Texts(tar) as texts:
        for key, sample in samples.items():
            pictures = [member for ending, member in sample.items() if ending in PICTURES]
            if len(pictures) != 1:
                found = ", ".join(picture.name for picture in pictures) or None
                rule, repair = f"one picture, such as {key}.jpg", "Write the sample again, or remove it."
                faults.append(Fault(tar.name, rule, repair, key, value=found))
                continue
            address = Member(tar.address, *pictures[0][:3]).address
            try:
                record = read_record(texts.read(sample[JSON])) if is_json_needed and JSON in sample else {}
                own = {name: texts.read(sample[name]) for name in members if name in sample}
                yield [key, *fields.read({**record, IMAGE: address, **own})]
            except (ValueError, RecursionError) as error:
                rule, repair = "an object in .json, and UTF-8 texts", "Write the sample again, or remove it."
                faults.append(Fault(tar.name, rule, repair, key, value=str(error)))


class _Texts(ExitStack):
    """The texts of a tar, which is opened for those alone that its index does not hold."""

    def __init__(self, tar: Tar) -> None:
        super().__init__()
        self._tar = tar

    def read(self, member: Entry) -> str:
        if member.size > MOST_BYTES:
            raise ValueError(f"{member.name} of {member.size:,} bytes, more than {MOST_BYTES:,}")
        content = member.content
        if content is None:
            self._content.seek(member.offset)
            content = self._content.read(member.size)
        return content.decode("utf-8-sig")

    @cached_property
    def _content(self) -> BinaryIO:
        path = self.enter_context(self._tar.open())
        return self.enter_context(path.open("rb"))
