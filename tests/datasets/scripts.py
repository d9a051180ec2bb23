"""What the tests of the scripts share: a script as a module, a package as Debian gives it, and what was written."""

import importlib.util
import io
import tarfile
from pathlib import Path
from types import ModuleType

import pandas as pd

DATASETS = Path(__file__).parents[2] / "datasets"


def load_script(name: str) -> ModuleType:
    """A fresh module of a script."""
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", DATASETS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_deb(source: Path, inside: str, package: Path, member: str = "data.tar.xz") -> Path:
    """A Debian package with a folder at a place inside it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        archive.add(source, f"./{inside}")
    with package.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in (
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", b"odd"),
            (member, data.getvalue()),
        ):
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return package


def read(path: Path) -> pd.DataFrame:
    """A table, each cell as it stands."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def contents(folder: Path) -> dict[Path, bytes]:
    """The files below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
