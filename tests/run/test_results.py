"""The tables and sentences of the screen, the report and the card."""

import pytest

from finetune.run.results import format_results, format_table, installed_versions

COLUMNS = {
    "before": {"test/image_to_text/R@1": 0.125, "test/image_to_text/median_rank": 7.0},
    "after": {"test/image_to_text/R@1": 0.5, "test/image_to_text/median_rank": 1.5},
}


def test_rates_are_per_cent_and_ranks_are_ranks():
    lines = format_table(COLUMNS).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["test/image_to_text/R@1", "12.5 %", "50.0 %"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["test/image_to_text/median_rank", "7.0", "1.5"]
    assert len({len(line) for line in lines}) == 1


def test_a_metric_that_one_column_lacks_is_a_dash():
    assert "| test/accuracy | -   | 50.0 % |" in format_table({"one": {}, "two": {"test/accuracy": 0.5}})


def test_differences_stand_beside_the_models_and_say_what_is_unclear():
    differences = {
        "test/image_to_text/R@1": {"value": 0.375, "low": 0.25, "high": 0.5, "verdict": "higher"},
        "test/image_to_text/median_rank": {"value": -5.5, "low": -7.0, "high": -3.5, "verdict": "lower"},
        "test/accuracy": {"value": 0.01, "low": -0.02, "high": 0.04, "verdict": "no clear difference"},
    }
    columns = {
        "before": COLUMNS["before"] | {"test/accuracy": 0.5},
        "after": COLUMNS["after"] | {"test/accuracy": 0.51},
    }
    lines = format_table(columns, differences).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0][-1] == "difference, 95 % interval"
    assert [line[-1] for line in cells[2:]] == [
        "+37.5 (+25.0 to +50.0)",
        "-5.5 (-7.0 to -3.5)",
        "+1.0 (-2.0 to +4.0) no clear difference",
    ]


def test_results_say_what_was_lost_on_retention_tables():
    metrics = COLUMNS | {
        "drift": 0.0625,
        "notices": [{"about": "loss", "message": "The loss is no number.", "places": []}],
        "retention": {
            "tables": {
                "photos": {"metric": "test/accuracy", "before": 0.5, "after": 0.25, "relative_loss": 0.5},
                "maps": {"metric": "test/accuracy", "before": 0.0, "after": 0.1, "relative_loss": None},
            },
            "mean_relative_loss": 0.5,
            "worst_relative_loss": 0.5,
        },
    }
    text = format_results(metrics)
    assert text.startswith(format_table(COLUMNS))
    assert "| retention table | metric        | before | after  | relative loss |" in text
    assert "| photos          | test/accuracy | 50.0 % | 25.0 % | 50.0 %        |" in text
    assert "| maps            | test/accuracy | 0.0 %  | 10.0 % | -             |" in text
    assert "| worst           |               |        |        | 50.0 %        |" in text
    assert "Drift 0.062" in text
    assert text.endswith("\n\nTraining: The loss is no number.")


def test_figures_of_single_classes_are_left_to_the_file():
    table = format_table({"after": {"test/mean_average_precision": 0.5, "test/average_precision/cat": 0.25}})
    assert "mean_average_precision" in table
    assert "cat" not in table


def test_results_give_interpolation_and_calibration_a_line_each():
    curve = [
        {"interpolation": 0.0, "target": 0.1, "retention_loss": 0.0, "retention_error": 0.0},
        {"interpolation": 0.7, "target": 0.931, "retention_loss": 0.03, "retention_error": 0.01},
    ]
    calibration = {
        "temperature": {"trained": 0.05, "fitted": 0.0421},
        "expected_calibration_error": {"trained": 0.054, "fitted": 0.021},
        "of_a_calibrated_model": {"trained": 0.017, "fitted": 0.018},
        "bins": [],
    }
    interpolation = {"chosen": 0.7, "max_retention_loss": 0.05, "curve": curve}
    lines = format_results(COLUMNS | {"interpolation": interpolation, "calibration": calibration}).splitlines()
    assert (
        "Interpolation 0.7: the weights lie 70 % of the way from the base to the trained model. "
        "On the validation rows this model scores 93.1 %; on the rows by which it was chosen, its largest retention "
        "loss is 3.0 % (± 1.0), the limit 5.0 %."
    ) in lines
    assert (
        "Calibration: fitted on the validation rows, the temperature went from 0.05 to 0.0421; "
        "on the test rows, the expected calibration error went from 5.4 % to 2.1 %. "
        "A perfectly calibrated model would show 1.8 % on as many rows."
    ) in lines
    assert format_results({"interpolation": interpolation | {"chosen": 0.0}}) == (
        "Interpolation 0: the weights lie 0 % of the way from the base to the trained model. "
        "On the validation rows this model scores 10.0 %; on the rows by which it was chosen, its largest retention "
        "loss is 0.0 %, the limit 5.0 %. "
        "This is the base: every other point exceeds the limit or scores hardly better."
    )
    curve[1] |= {"retention_loss": 0.021, "retention_error": 0.118}
    assert format_results({"interpolation": interpolation}).endswith(
        "its largest retention loss is 2.1 % (± 11.8), the limit 5.0 %: too few rows to hold this limit."
    )
    for rows, end in ((10, "It was fitted on 10 rows, which may do harm: --run.calibrate false"), (50, "many rows.")):
        assert format_results({"calibration": calibration | {"fitted_on": rows}}).endswith(f" {end}")
    point = {"interpolation": 1.0, "target": 0.5, "retention_loss": None, "retention_error": None}
    nothing_to_lose = {"chosen": 1.0, "max_retention_loss": 0.05, "curve": [point]}
    assert format_results({"interpolation": nothing_to_lose}) == (
        "Interpolation 1: the weights lie 100 % of the way from the base to the trained model. "
        "On the validation rows this model scores 50.0 %."
    )
    assert format_results({"interpolation": {"chosen": 0.25}}) == (
        "Interpolation 0.25: the weights lie 25 % of the way from the base to the trained model."
    )


def test_results_say_of_how_many_models_one_was_chosen_and_why():
    falling = {"image": [1.0, 0.5], "text": [0.3, 0.3]}
    point = {"target": 0.9, "target_error": 0.01, "retention_loss": 0.03, "retention_error": 0.0}
    points = [{"interpolation": interpolation, **point} for interpolation in (0.0, 0.5, falling)]
    found = {"max_retention_loss": 0.05, "curve": points[:2], "profiles": points[2:]}
    reason = "Of 3 models, it loses least among those that score about as well as any within the limit."
    for chosen in (0.5, falling):
        line = format_results({"interpolation": {"chosen": chosen, **found}})
        assert line.endswith(f" scores 90.0 %; on the rows by which it was chosen, {LOST}. {reason}")
    assert format_results({"interpolation": {"chosen": 0.0, **found}}).endswith(f"{LOST}. {BASE}")


LOST = "its largest retention loss is 3.0 %, the limit 5.0 %"
BASE = "This is the base: every other point exceeds the limit or scores hardly better."


@pytest.mark.parametrize(
    ("image", "text", "line"),
    [
        (
            [0.7, 0.7],
            [0.3, 0.3],
            "Interpolation image=0.7,text=0.3: the weights of the image tower lie 70 % of the way from the base to the "
            "trained model, those of the text tower 30 %.",
        ),
        (
            [1.0, 0.5],
            [0.0, 0.25],
            "Interpolation image=1:0.5,text=0:0.25: the weights of the image tower lie 100 % (first block) to 50 % "
            "(last block) of the way from the base to the trained model, those of the text tower 0 % (first block) to "
            "25 % (last block).",
        ),
    ],
)
def test_results_say_where_the_weights_of_each_tower_lie(image, text, line):
    assert format_results({"interpolation": {"chosen": {"image": image, "text": text}}}) == line


def test_calibration_error_is_a_rate():
    assert "| 5.4 %" in format_table({"after": {"test/expected_calibration_error": 0.054}})


def test_installed_versions_are_those_imported():
    import torch
    import transformers

    versions = installed_versions()
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == transformers.__version__
