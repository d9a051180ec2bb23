"""Every example of docs/your-table.md is read as it stands."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from finetune.data.table.filters import parse_filter
from finetune.data.table.table import Table

PAGE = (Path(__file__).parents[3] / "docs" / "your-table.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_argument_has_an_example() -> None:
    named = {key for example in EXAMPLES for key in re.findall(r"^ +(\w+):", example, flags=re.MULTILINE)}
    assert {field.name for field in fields(Table)} - named <= {"image", "images"}
    assert all(f"`{name}: " in PAGE for name in ("image", "images"))


@pytest.mark.parametrize(
    "text",
    [
        "200 <= width < 2000",
        "license in ('cc0', 'by')",
        "not (num_faces > 0 or watermark_score > 0.5)",
        "width > height",
    ],
)
def test_filters(text: str) -> None:
    assert f"`{text}`" in PAGE
    assert parse_filter(text).conditions


@pytest.mark.parametrize("name", ["concerns", "copies", "equal_texts", "learnable", "limits"])
def test_every_warning_is_explained(name: str) -> None:
    source = (Path(__file__).parents[3] / "finetune" / "data" / "checks" / f"{name}.py").read_text(encoding="utf-8")
    abouts = re.findall(r'Concern\(\s*"(\w+)"', source) + re.findall(r'"((?:image|copy)_\w+)"', source)
    assert abouts
    assert all(f"| `{about}` |" in PAGE for about in abouts)
