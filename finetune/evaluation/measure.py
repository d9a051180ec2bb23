"""Everything that is measured of one model: the test rows, the retention tables, the baselines, the drift probe."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from finetune.core.types import Answers
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.prepare.members import place_of
from finetune.evaluation.baselines import embed_images, linear_probe, neighbour_accuracy
from finetune.evaluation.evaluate import Evaluation, evaluate
from finetune.evaluation.probe import probe
from finetune.export.choose_interpolation import Choice
from finetune.inference.models import RowModel, ask_towers
from finetune.metrics.calibration import calibration_error, chance_calibration_error, reliability
from finetune.model.towers import AlignTowers
from finetune.run.measurement import TEST, Measurement, TableMeasurement

KNN = "test/knn_accuracy"


def measure_towers(
    towers: AlignTowers,
    data: ImageTextDataModule,
    device: torch.device,
    neighbours: int | None = None,
    with_linear_probe: bool = False,
    with_probe: bool = True,
) -> tuple[Measurement, Answers]:
    """Measures an ALIGN on the test rows, on the retention tables and by the drift probe.

    Args:
        towers: The model.
        data: The table, and those of `data.retention`.
        device: Where the model runs.
        neighbours: Of how many nearest training images the vote is measured too; None for none. Tables with one label a
            row alone have it.
        with_linear_probe: Whether a logistic regression on the image embeddings is measured too. Tables with labels
            alone have it.
        with_probe: Whether what the drift meter looks at is kept.

    Returns:
        The measurement, and the answers to the test rows.
    """
    towers = towers.eval().to(device)
    measured, answers = measure_rows(ask_towers(towers, data.class_prompts), data, device)
    probed = None
    if data.kind.classes and (with_linear_probe or (neighbours and data.kind.has_one_label)):
        images = embed_images(towers, data, device, answers, "training images")
        if neighbours and data.kind.has_one_label:
            figure = neighbour_accuracy(images, neighbours)
            measured.test.figures[KNN] = figure
            measured.test.metrics[KNN] = float(figure.point_estimate())
        if with_linear_probe:
            probed = linear_probe(images, data.kind.metric())
    for name, other in data.retention.items():
        model = ask_towers(towers, other.class_prompts)
        evaluation = evaluate(model, other.loader("test"), other.kind.metric(), device, f"retention, {name}")
        measured.tables[name] = _summarise(evaluation, other)
    measured = measured._replace(linear_probe=probed, probe=probe(towers, data, device) if with_probe else None)
    return measured, answers


def measure_rows(model: RowModel, data: ImageTextDataModule, device: torch.device) -> tuple[Measurement, Answers]:
    """Measures any model on the test rows.

    Args:
        model: The model.
        data: The table.
        device: Where the model runs.

    Returns:
        The measurement, and the answers to the test rows.
    """
    metric = data.kind.metric()
    found = evaluate(model, data.loader("test"), metric, device, "test")
    measured = Measurement({TEST: _summarise(found, data)}, data.kind.predictions(found.answers, metric))
    return measured, found.answers


def _summarise(found: Evaluation, data: ImageTextDataModule) -> TableMeasurement:
    rows, table = found.answers.rows.numpy(), data.rows
    described = pd.DataFrame(
        {
            "file": [Path(table.file(row)).name for row in rows],
            "row": [str(number) for number in table.numbers[rows].tolist()],
            "image": [Path(place_of(str(image))).name for image in table.images[rows]],
            "text": table.captions[rows].tolist(),
        }
    )
    return TableMeasurement(found.metrics, found.headline, found.figures, described)


def measure_calibration(choice: Choice, answers: Answers) -> dict[str, Any] | None:
    """Returns how right the probabilities of the classes are, at the trained and at the fitted temperature.

    Args:
        choice: The temperatures.
        answers: What the exported model, at the fitted temperature, says of the test rows. At the trained temperature
            it would say the same, more or less surely.

    Returns:
        `calibration` of `metrics.json`; None where no temperature was fitted.
    """
    scores, labels = answers.class_scores, answers.truth
    if choice.temperature is None or scores is None:
        return None
    errors, by_chance = {}, {}
    for name, factor in (("trained", 1 / choice.scale), ("fitted", 1.0)):
        best = (factor * scores).softmax(dim=-1).max(dim=-1)
        errors[name] = float(calibration_error(best.values, best.indices == labels))
        by_chance[name] = chance_calibration_error(best.values)
    trained, fitted, rows = choice.temperature
    return {
        "temperature": {"trained": trained, "fitted": fitted},
        **({} if rows is None else {"fitted_on": rows}),
        "expected_calibration_error": errors,
        "of_a_calibrated_model": by_chance,
        "bins": [part._asdict() for part in reliability(scores, labels)],
    }
