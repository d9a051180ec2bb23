"""The result in sentences: better, worse or unclear, and what it cost."""

import json

import pytest

from finetune.report.facts import Facts
from finetune.report.words import describe_verdict, summarise
from finetune.run.folder import RunFolder

from .conftest import METRICS

SPACE = "\N{NO-BREAK SPACE}"


def read(run, **metrics) -> Facts:
    path = run / "metrics.json"
    content = json.loads(path.read_text()) | metrics
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return Facts.read(RunFolder(run))


def difference(value, low, high, verdict):
    return {"value": value, "low": low, "high": high, "verdict": verdict}


def test_summary_of_a_run_with_everything(label_run):
    facts = read(label_run)
    assert describe_verdict(facts) == "The model is better than the base on accuracy."
    assert summarise(facts).replace(SPACE, " ") == (
        "On 39 test rows, accuracy rose from 25.0 % to 75.5 %, by 50.5 points (95 % interval: 41.2 to 60.6). "
        "A linear probe of the base's frozen embeddings reaches 61.5 % without fine-tuning. On the retention tables "
        "the model lost up to 25.0 % of the base's performance (photos: 40.0 % before, 30.0 % after). "
        "A fresh process with plain transformers 5.23.0 opened the folder merged, which reproduces the trained model "
        "within 3.0e-07 (image), 1.0e-07 (text); the tolerance is 1e-05."
    )
    assert " %" not in summarise(facts)


@pytest.mark.parametrize(
    ("verdict", "words", "change"),
    [
        ("lower", "is worse than", "accuracy fell from 25.0 % to 75.5 %, by 3.0 points"),
        ("no clear difference", "shows no clear difference from", "which is no clear difference (95 %"),
    ],
)
def test_a_change_may_be_for_the_worse_or_unclear(label_run, verdict, words, change):
    facts = read(label_run, difference={"test/accuracy": difference(-0.03, -0.05, 0.02, verdict)})
    assert describe_verdict(facts) == f"The model {words} the base on accuracy."
    found = summarise(facts).replace(SPACE, " ")
    assert change in found
    assert ("interval: -2.0 to 5.0" if verdict == "lower" else "of the change: -5.0 to +2.0 points") in found


def test_directions_of_retrieval_may_disagree(caption_run):
    ways = {"test/image_to_text/R@1": "higher", "test/text_to_image/R@1": "lower"}
    facts = read(caption_run, difference={key: difference(0.1, 0.05, 0.2, verdict) for key, verdict in ways.items()})
    assert (
        describe_verdict(facts) == "The model is better than the base on R@1 in one direction and worse in the other."
    )
    assert "image-to-text R@1 rose" in summarise(facts)
    assert "text-to-image R@1 fell" in summarise(facts)


def test_without_intervals_nothing_is_claimed(caption_run):
    facts = read(caption_run, difference=None)
    assert describe_verdict(facts) == (
        "The run has no confidence intervals, so it does not say whether the model is better than the base."
    )
    assert f"image-to-text R@1 went from 5.0{SPACE}% to 5.0{SPACE}%" in summarise(facts)


def test_a_linear_probe_that_is_no_worse_is_reported(label_run):
    assert "reaches 61.5" in summarise(read(label_run))
    facts = read(label_run, **{"linear probe": METRICS["after"]})
    assert "the model does not beat that" in summarise(facts)


def test_who_exported_all_that_was_trained_is_told_how_to_keep_more_where_the_loss_is_clear(label_run):
    repair = "To keep more, set run.interpolation to auto in the run's recipe.yaml"
    assert repair not in summarise(read(label_run))  # interpolated already
    (name, table), *_ = METRICS["retention"]["tables"].items()
    for change in (None, difference(-0.1, -0.15, -0.05, "lower")):
        retention = METRICS["retention"] | {"tables": {name: table | {"difference": change}}}
        assert repair in summarise(read(label_run, interpolation=None, retention=retention))
    unclear = table | {"difference": difference(-0.1, -0.25, 0.05, "no clear difference")}
    retention = METRICS["retention"] | {"tables": {name: unclear}}
    assert repair not in summarise(read(label_run, interpolation=None, retention=retention))
    gained = METRICS["retention"] | {"tables": {name: table | {"relative_loss": -0.1}}, "worst_relative_loss": -0.1}
    assert repair not in summarise(read(label_run, interpolation=None, retention=gained))


def test_what_was_lost_on_retention_tables_is_reported_as_it_is(label_run):
    gained = METRICS["retention"] | {"worst_relative_loss": -0.25}
    assert "On the retention tables the model lost nothing." in summarise(read(label_run, retention=gained))
    nothing = METRICS["retention"] | {"worst_relative_loss": None}
    assert "so there was nothing to lose" in summarise(read(label_run, retention=nothing))
    facts = read(label_run, retention=None)
    assert "The recipe names no retention tables (data.retention)" in summarise(facts)
    assert "drift is 0.062" in summarise(facts)
