"""The table's keys in a recipe and on the command line: read, dumped and read again."""

import pytest
from jsonargparse import ArgumentParser

from finetune.data.table.table import CaptionList, RandomSplit, Table


@pytest.mark.parametrize(
    ("given", "split"),
    [(["--table.split", "fold"], "fold"), (["--table.split.val", "0.2"], RandomSplit(val=0.2)), ([], RandomSplit())],
)
def test_keys_of_a_recipe(given: list[str], split: str | RandomSplit) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Table, "table")
    config = parser.parse_args(["--table.path", "t.csv", "--table.label", "kind", *given])
    assert parser.instantiate(config).table == Table("t.csv", label="kind", split=split)
    again = parser.parse_string(parser.dump(config))
    assert parser.instantiate(again).table == Table("t.csv", label="kind", split=split)


@pytest.mark.parametrize(
    "table",
    [
        Table("t.csv", caption=("a", "b"), image_id="id", separator="\t"),
        Table("t.csv", caption=CaptionList("texts"), filter="a > 0.5 and b in ('x', 'y')", limit_rows=7),
        Table("t.csv", label="label", names="names.csv", weight="w", split=RandomSplit(0.0, 0.3, 4)),
        Table("t.csv", label="label", label_separator="|"),
    ],
)
def test_recipe_keys_are_dumped_and_read_again(table: Table) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Table, "table")
    values = {name: value for name, value in vars(table).items() if isinstance(value, str | int)}
    if isinstance(table.split, RandomSplit):
        values["split"] = vars(table.split)
    if isinstance(table.caption, CaptionList | tuple):
        values["caption"] = list(table.caption) if isinstance(table.caption, tuple) else vars(table.caption)
    config = parser.parse_object({"table": values})
    assert parser.instantiate(config).table == table
    again = parser.parse_string(parser.dump(config))
    assert parser.instantiate(again).table == table


@pytest.mark.parametrize(
    ("words", "caption"), [("text", "text"), ("[a, b]", ("a", "b")), ("{json_list: x}", CaptionList("x"))]
)
def test_captions_on_the_command_line(words: str, caption: object) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Table, "table")
    config = parser.parse_args(["--table.path", "t.csv", "--table.caption", words])
    assert parser.instantiate(config).table.caption == caption


@pytest.mark.parametrize("separator", ["|", ",", ";", " ", "/"])
def test_label_separators_on_the_command_line(separator: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Table, "table")
    words = ["--table.path", "t.csv", "--table.label", "label", "--table.label_separator", separator]
    assert parser.instantiate(parser.parse_args(words)).table.label_separator == separator
