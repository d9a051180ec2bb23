"""Asks servers for files, again where they fail, and says what happened where they keep failing."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO, NamedTuple, TypeVar

from finetune.core.errors import FileError, RecipeError
from finetune.core.places import NO_ROOM
from finetune.data.remote.places import hide, open_files

_PIECE, _SMALL_PIECE = 32 << 20, 1 << 20
"""Bytes asked for at a time, and where a connection is cut again and again."""

_VERSIONS = (
    "ETag",
    "etag",
    "Content-MD5",
    "md5Hash",
    "generation",
    "blob_id",
    "Last-Modified",
    "LastModified",
)
_TEMPORARY = {408, 425, 429}
"""The states of HTTP below 500 after which a client is to ask again."""

Got = TypeVar("Got")


class RemoteError(FileError):
    """A remote file cannot be had.

    Args:
        url: The file, or a pattern.
        rule: What was expected of it, such as `to be there`.
        found: What happened.
        repair: What to do about it.
    """

    def __init__(self, url: str, rule: str, found: str, repair: str) -> None:
        super().__init__(url, rule, found, repair)
        self.url, self.rule, self.found, self.repair = hide(url), rule, found, repair

    def __str__(self) -> str:
        return f"Expected {self.url} {self.rule}, but got {self.found}. {self.repair}"


class RemoteFile(NamedTuple):
    """A file on a server, as it was when the server was asked.

    Attributes:
        url: Where it lies, without credentials.
        size: Number of its bytes; None where the server does not say.
        version: What the server says of its content: an ETag, a date; empty where it says nothing.
    """

    url: str
    size: int | None
    version: str

    @classmethod
    def of_info(cls, url: str, info: dict[str, Any]) -> "RemoteFile":
        """Reads what fsspec says of a file.

        Args:
            url: Where it lies.
            info: The record.
        """
        versions = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name)]
        return cls(url, info.get("size"), " ".join(versions))

    @property
    def fingerprint(self) -> str:
        """A hash that changes with the content, as far as the server tells."""
        return blake2b(repr(tuple(self)).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Transfer:
    """Asks a server, several times if need be.

    Args:
        tries: How often in a row something may fail.
        pause: Seconds before the second try; each further pause is twice as long.
    """

    tries: int = 5
    pause: float = 1.0

    def look(self, url: str) -> RemoteFile:
        """Asks for size and version of a file.

        Args:
            url: The file.

        Raises:
            RemoteError: If it is not there, or the server does not answer.
        """
        return RemoteFile.of_info(url, self.ask(url, lambda: open_files(url).info(url)))

    def ask(self, url: str, question: Callable[[], Got]) -> Got:
        """Returns what a question to a server answers.

        Args:
            url: What it is about, for the message.
            question: The question, asked again after a failure that may pass.

        Raises:
            RemoteError: If it fails for good.
        """
        for failures in range(1, self.tries + 1):
            try:
                return question()
            except (RecipeError, RemoteError):
                raise
            except Exception as error:  # each library raises kinds of its own
                self._give_up_or_wait(url, error, failures, "to be there")
        raise AssertionError("unreachable")

    def fetch(self, file: RemoteFile, target: BinaryIO) -> None:
        """Writes a file's content, and goes on where a connection was cut.

        Args:
            file: The file.
            target: Where to write it; empty.

        Raises:
            RemoteError: If it cannot be had whole, or is another one by now.
        """
        failures, piece, ranges = 0, _PIECE, file.size is not None
        while True:
            before = target.tell()
            try:
                for content in _read(file, before, piece, ranges):
                    target.write(content)
                break
            except _NoRangesError:
                ranges = False
            except Exception as error:
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise
                failures = 1 if ranges and target.tell() > before else failures + 1
                self._give_up_or_wait(file.url, error, failures, "to be fetched whole", _progress(file, target.tell()))
                piece = max(_SMALL_PIECE, piece // 4)
            if not ranges:
                target.seek(0)
                target.truncate()
        if (now := self.look(file.url)) != file:
            found = f"{_describe(now)} now, {_describe(file)} before"
            raise RemoteError(file.url, "to stay as it is while it is used", found, "Start again.")

    def _give_up_or_wait(self, url: str, error: Exception, failures: int, rule: str, progress: str = "") -> None:
        if failures >= self.tries or not _may_pass(error):
            raise _explain(url, error, failures, rule, progress) from error
        time.sleep(self.pause * 2 ** (failures - 1))


class _NoRangesError(Exception):
    """The server sends a file from its beginning only."""


def _read(file: RemoteFile, start: int, piece: int, ranges: bool) -> Iterator[bytes]:
    """Yields the content from a position on."""
    files, end = open_files(file.url), math.inf if file.size is None else file.size
    with files.open(file.url, "rb", block_size=piece if ranges else 0, cache_type="none") as source:
        if start and not ranges:
            raise _NoRangesError
        if ranges:
            source.seek(start)
        while start < end:
            try:
                content = source.read(int(min(piece, end - start)))
            except ValueError as error:  # fsspec's word for it
                if not ranges:
                    raise
                raise _NoRangesError from error
            if not content and file.size is None:
                return
            if not content:
                raise ConnectionError("the transfer ended early")
            start += len(content)
            yield content


def _may_pass(error: BaseException) -> bool:
    """Whether asking again may help: not where something is not there, or not to be read."""
    status = _find_status(error)
    if status is not None:
        return status >= 500 or status in _TEMPORARY
    is_missing = isinstance(error, FileNotFoundError) and error.__cause__ is None
    return not (is_missing or isinstance(error, PermissionError))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _find_status(error: BaseException) -> int | None:
    """The state of HTTP that a library reports, in whatever way."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore's
            response = response.get("ResponseMetadata", {})
            status = response.get("HTTPStatusCode")
        else:
            status = getattr(response, "status_code", None) or getattr(cause, "status", None)
        if isinstance(status, int) and 400 <= status < 600:
            return status
    return None


def _explain(url: str, error: Exception, tries: int, rule: str, progress: str) -> RemoteError:
    status, last = _find_status(error), list(_causes(error))[-1]
    said = ": ".join(filter(None, (type(last).__name__, " ".join(hide(str(last)).split()).rstrip("."))))
    found = f"HTTP status {status}" if status else "no file" if _is_gone(error) else said
    if status in (401, 403) or isinstance(error, PermissionError):
        repair = "Give this machine access to it, as docs/shards.md says, or correct the address."
    elif status in (404, 410) or _is_gone(error):
        repair = "Put it back, or correct the address."
    else:
        repair = f"Tried {tries} times: check the network and the server, and start again."
    return RemoteError(url, rule, f"{found}{progress}", repair)


def _is_gone(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) and error.__cause__ is None


def _progress(file: RemoteFile, done: int) -> str:
    size = "an unknown number of" if file.size is None else f"{file.size:,}"
    return f" after {done:,} of {size} bytes"


def _describe(file: RemoteFile) -> str:
    return f"{'unknown' if file.size is None else f'{file.size:,}'} bytes {file.version}".strip()
