"""Whether this machine can run the toolkit, and a recipe: what was found, what stands in the way, and its repair."""

from collections.abc import Iterator

from finetune.pipeline.doctor.files import find_files
from finetune.pipeline.doctor.finding import Finding
from finetune.pipeline.doctor.hub import find_hub
from finetune.pipeline.doctor.machine import find_machine
from finetune.pipeline.doctor.packages import find_packages

__all__ = ["Finding", "examine"]


def examine() -> Iterator[Finding]:
    """Yields what is found of this machine, one after the other; nothing is written that stays."""
    yield from find_packages()
    yield from find_machine()
    yield from find_files()
    yield from find_hub()
