import pickle

from finetune.core.errors import TableError
from finetune.data.table.faults import Fault, TableFaultsError

FAULT = Fault("t.csv", "a caption", "Fill it in.", 3, "caption", " ")


def test_message_names_place_rule_value_and_repair() -> None:
    assert str(FAULT) == "t.csv:3:caption: Expected a caption, but got ' '. Fill it in."


def test_places_that_are_not_known_are_left_out() -> None:
    fault = FAULT._replace(row=None, column=None, value=None)
    assert str(fault) == "t.csv: Expected a caption, but got none. Fill it in."


def test_long_values_and_line_ends_stay_on_one_line() -> None:
    shown = str(FAULT._replace(value="x\n" * 1_000))
    assert "\n" not in shown
    assert len(shown) < 200
    assert "…" in shown
    assert "/photos/last.png'" in str(FAULT._replace(value="deep/" * 100 + "/photos/last.png"))


def test_ten_are_shown_and_all_are_kept() -> None:
    error = TableFaultsError([FAULT._replace(row=row) for row in range(2, 49)])
    assert isinstance(error, TableError)
    assert len(error.faults) == 47
    assert str(error).count("Expected") == 10
    assert str(error).endswith("… and 37 more; `finetune check` lists all.")
    assert "more" not in str(TableFaultsError([FAULT] * 10))


def test_error_crosses_processes() -> None:
    assert pickle.loads(pickle.dumps(TableFaultsError([FAULT]))).faults == (FAULT,)
