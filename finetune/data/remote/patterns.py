"""Finds the remote files that a pattern names: by `*`, where a server lists its files, and by `{00000..00099}`."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from finetune.data.remote.places import open_files
from finetune.data.remote.transfer import RemoteError, RemoteFile, Transfer

_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST = 1_000_000
_AT_ONCE = 16


def find_remote(pattern: str, transfer: Transfer) -> list[RemoteFile]:
    """Returns the files that a URL or pattern names, sorted by URL.

    Args:
        pattern: A URL that may hold wildcards, and spans of numbers such as `{00000..00099}`.
        transfer: Asks the servers.

    Raises:
        RemoteError: If there is none, or one that is named cannot be had.
    """
    if not re.search(r"[*?\[]", pattern):
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # one question a file, so several at once
            return list(pool.map(transfer.look, expand_numbers(pattern)))
    found = {file.url: file for part in expand_numbers(pattern) for file in _list(part, transfer)}
    return [found[url] for url in sorted(found)]


def expand_numbers(pattern: str) -> list[str]:
    """Writes out spans of numbers, as a shell does; a span that begins with 0 keeps its width.

    Args:
        pattern: A URL.

    Raises:
        RemoteError: If a span runs backwards, or names more than a million files.

    Example:
        >>> expand_numbers("s3://photos/{08..10}.tar")
        ['s3://photos/08.tar', 's3://photos/09.tar', 's3://photos/10.tar']
    """
    names: Sequence[str] = [pattern]
    while found := _NUMBERS.search(names[0]):
        first, last = int(found[1]), int(found[2])
        if not 0 <= last - first < _MOST // len(names):
            rule = f"to hold numbers that run upwards, over at most {_MOST:,} files"
            raise RemoteError(pattern, rule, f"{{{found[1]}..{found[2]}}}", "Correct the numbers.")
        width = len(found[1]) if found[1].startswith("0") else 0
        written = [f"{number:0{width}}" for number in range(first, last + 1)]
        names = [_NUMBERS.sub(number, name, count=1) for name in names for number in written]
    return list(names)


def _list(pattern: str, transfer: Transfer) -> list[RemoteFile]:
    scheme = pattern.partition("://")[0]
    listed = transfer.ask(pattern, lambda: open_files(pattern).glob(pattern, detail=True))
    names = [(name if "://" in name else f"{scheme}://{name}", info) for name, info in listed.items()]
    files = [(url, info) for url, info in names if info.get("type") == "file"]
    if not files:
        repair = (
            "Correct the pattern; where a server lists no folders, write out the numbers, as in {00000..00099}.tar."
        )
        raise RemoteError(pattern, "to match files", "none", repair)
    if scheme in ("http", "https"):  # a page of links says nothing of the files
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(transfer.look, (url for url, _ in files)))
    return [RemoteFile.of_info(url, info) for url, info in files]
