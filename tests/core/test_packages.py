"""Debian packages that are damaged or made to do harm."""

import io
import tarfile
from pathlib import Path

import pytest

from finetune.core import packages
from finetune.core.errors import FileError
from finetune.core.packages import DebianPackage

PACKAGE = DebianPackage("tool", "tool_1.deb", Path("/usr/share/tool"), "--tool")


def write_deb(path: Path, members: list[tarfile.TarInfo], name: bytes = b"data.tar.xz", length: bytes = b"") -> Path:
    """A package whose files are as long as they say and filled with zeros."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    length = length or str(len(data.getvalue())).encode()
    path.write_bytes(b"!<arch>\n" + name.ljust(48) + length.ljust(10) + b"`\n" + data.getvalue())
    return path


def make_member(name: str, size: int = 0, target: str = "") -> tarfile.TarInfo:
    """A file, or a link to a target."""
    member = tarfile.TarInfo(f"./usr/share/tool/{name}")
    member.size, member.linkname, member.type = size, target, tarfile.SYMTYPE if target else tarfile.REGTYPE
    return member


@pytest.mark.parametrize("target", ["file", "missing", "../../../etc/passwd", "/etc/passwd"])
def test_links_in_a_package_are_passed_over(target: str, tmp_path: Path) -> None:
    path = write_deb(tmp_path / "tool.deb", [make_member("file", 3), make_member("link", target=target)])
    assert PACKAGE.read(path, lambda _: True) == {"file": bytes(3)}


@pytest.mark.parametrize("length", [b"-60", b"x", b"1_0", b" "])
def test_a_damaged_header_is_refused(length: bytes, tmp_path: Path) -> None:
    path = write_deb(tmp_path / "tool.deb", [], b"control.tar.xz", length)
    with pytest.raises(FileError, match=r"Expected .*tool\.deb to be whole, but a header in it is damaged\. Get it"):
        PACKAGE.read(path, lambda _: True)


def test_a_package_with_odd_names_says_what_it_holds(tmp_path: Path) -> None:
    path = write_deb(tmp_path / "tool.deb", [], b"\xff.tar")
    with pytest.raises(FileError, match="to hold data.tar.xz, but it holds \N{REPLACEMENT CHARACTER}.tar"):
        PACKAGE.read(path, lambda _: True)


def test_memory_holds_no_more_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_deb(tmp_path / "tool.deb", [make_member("a", 600), make_member("b", 600), make_member("c", 2000)])
    monkeypatch.setattr(packages, "MOST_BYTES", 1200)
    assert PACKAGE.read(path, lambda name: name.name != "c") == {"a": bytes(600), "b": bytes(600)}
    with pytest.raises(FileError, match=r"wanted of .*tool\.deb to have at most 1200 bytes, but got more\. Get"):
        PACKAGE.read(path, lambda _: True)
