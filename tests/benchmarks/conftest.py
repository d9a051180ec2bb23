"""The benchmarks' modules, which import each other by name, as their commands find them."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def load_benchmarks() -> Callable[..., dict[str, ModuleType]]:
    """Imports modules of the benchmarks by file, under the names of the keywords."""

    def load(**files: str) -> dict[str, ModuleType]:
        sys.path.insert(0, str(BENCHMARKS))
        try:
            return {name: import_module(file) for name, file in files.items()}
        finally:
            sys.path.remove(str(BENCHMARKS))

    return load
