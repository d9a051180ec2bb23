"""Files of YAML: plain values, and not more of them than the file is long."""

import pytest

from finetune.core.errors import RecipeError
from finetune.core.yaml_text import MOST_VALUES, read_yaml

ALIASES = "\n".join(
    ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"b{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]" for at in range(1, 12)]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, f"at most {MOST_VALUES:,} values, but its aliases stand for"),
        ("a: &a {b: *a}", "valid YAML"),
        (f"a: {'[' * 1000}{']' * 1000}", "valid YAML"),
        (f"a: {'9' * 5000}", "valid YAML"),
        ("a: 2001-99-99", "valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "valid YAML"),
        ("a: [", "valid YAML"),
        ("? {a: b}\n: x", "valid YAML"),
    ],
)
def test_is_refused(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_yaml(path)


def test_plain_values_and_aliases_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &a [1, two]\nb: *a\n")
    assert read_yaml(path) == {"a": [1, "two"], "b": [1, "two"]}
