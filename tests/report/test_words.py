"""The result in sentences: better, worse or unclear, and what it cost."""

import json

import pytest

from finetune.report.facts import Facts
from finetune.report.words import judge, summarise
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
    assert judge(facts) == "Better than the base by accuracy."
    assert summarise(facts).replace(SPACE, " ") == (
        "On 39 test rows accuracy rose from 25.0 % to 75.5 %, by 50.5 points (95 % interval 41.2 to 60.6). "
        "Without fine-tuning, a logistic regression on the base's frozen embeddings reaches 61.5 %. "
        "Elsewhere it lost up to 25.0 % of what the base could do (photos: 40.0 % before, 30.0 % after). "
        "Proof: opened in a fresh process with plain transformers 5.23.0, merged gave image within 3.0e-07, "
        "text within 1.0e-07 of the trained model, at most 1e-05 allowed."
    )
    assert " %" not in summarise(facts)


@pytest.mark.parametrize(
    ("verdict", "sentence", "change"),
    [
        ("lower", "Worse than the base by accuracy.", "accuracy fell from 25.0 % to 75.5 %, by 3.0 points"),
        ("no clear difference", "No clear difference from the base by accuracy.", "no clear difference (95 %"),
    ],
)
def test_a_change_may_be_for_the_worse_or_unclear(label_run, verdict, sentence, change):
    facts = read(label_run, difference={"test/accuracy": difference(-0.03, -0.05, 0.02, verdict)})
    assert judge(facts) == sentence
    found = summarise(facts).replace(SPACE, " ")
    assert change in found
    assert ("interval -2.0 to 5.0" if verdict == "lower" else "of the change -5.0 to +2.0 points") in found


def test_directions_of_retrieval_may_disagree(caption_run):
    ways = {"test/image_to_text/R@1": "higher", "test/text_to_image/R@1": "lower"}
    facts = read(caption_run, difference={key: difference(0.1, 0.05, 0.2, verdict) for key, verdict in ways.items()})
    assert judge(facts) == "By R@1, better than the base one way and worse the other."
    assert "R@1 from image to text rose" in summarise(facts)
    assert "R@1 from text to image fell" in summarise(facts)


def test_without_intervals_nothing_is_claimed(caption_run):
    facts = read(caption_run, difference=None)
    assert judge(facts) == "Measured, without intervals."
    assert f"R@1 from image to text went from 5.0{SPACE}% to 5.0{SPACE}%" in summarise(facts)


def test_a_floor_that_is_no_less_is_said(label_run):
    assert "reaches 61.5" in summarise(read(label_run))
    facts = read(label_run, floor=METRICS["after"])
    assert "which is no less than the fine-tuned model" in summarise(facts)


def test_what_was_lost_elsewhere_is_said_as_it_is(label_run):
    gained = METRICS["retention"] | {"worst_relative_loss": -0.25}
    assert "Elsewhere nothing was lost." in summarise(read(label_run, retention=gained))
    nothing = METRICS["retention"] | {"worst_relative_loss": None}
    assert "so nothing could be lost" in summarise(read(label_run, retention=nothing))
    facts = read(label_run, retention=None)
    assert "No table stood for elsewhere (data.retention)" in summarise(facts)
    assert "drift is 0.062" in summarise(facts)
