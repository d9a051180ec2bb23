"""The pages of the documentation and their blocks of code."""

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
PROGRAM = re.compile(r"(?:^|[ |])finetune (?=[a-z])")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        page: The file it stands in.
        line: The line of its first fence.
        language: The word behind the fence.
        text: What it holds.
    """

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def read_blocks(page: Path, language: str | None = None) -> list[Block]:
    """The blocks of a page, of one language or of all."""
    text = page.read_text(encoding="utf-8")
    blocks = [
        Block(page, text.count("\n", 0, found.start()) + 1, found[2].strip(), textwrap.dedent(found[3]))
        for found in FENCE.finditer(text)
    ]
    return [block for block in blocks if language in (None, block.language)]


def read_commands(block: Block) -> list[str]:
    """The lines of a shell's block, each whole, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [plain for line in lines if (plain := re.sub(r"(^|\s)#.*", "", line).strip())]


def find_arguments(command: str) -> list[list[str]]:
    """The words behind each `finetune` of a line, whatever starts it."""
    parts = re.split(r"\s(?:\|\|?|&&)\s", command)
    return [
        shlex.split(part[found.end() :]) for part in parts if (found := PROGRAM.search(part)) and "pip" not in part[:3]
    ]
