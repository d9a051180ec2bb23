"""A measurement with everything that one can hold."""

import pandas as pd
import torch

from finetune.metrics.statistics import MeanAveragePrecision, MeanOfMeans, Median, mean
from finetune.run.measurement import TEST, Measurement, Probe, TableMeasurement

ODD = [
    "007",
    "true",
    "NA",
    "None",
    "",
    " a ",
    'ä, "b"',
    "two\nlines",
    "two\r\nlines",
    "a\rb",
    "nan",
    "1e5",
    "=1+1",
    "\t",
]
"""Texts that are easily taken for something else."""


def build_measurement() -> Measurement:
    """The own table, a retention table of the name `test`, and one with several labels."""
    generator = torch.Generator().manual_seed(0)

    def describe(texts: list[str]) -> pd.DataFrame:
        numbers = [str(number) for number in range(2, len(texts) + 2)]
        images = [f"{number}.png" for number in numbers]
        return pd.DataFrame({"file": "t.csv", "row": numbers, "image": images, "text": texts})

    ranks = torch.tensor([1.0, 2.0, 7.0, 3.0])
    scores = torch.randn(5, 3, generator=generator)
    targets = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
    tables = {
        TEST: TableMeasurement(
            {"test/accuracy": 2 / 3, "test/expected_calibration_error": 0.1},
            "test/accuracy",
            {"test/accuracy": mean(torch.tensor([0.0, 1.0, 1.0]))},
            describe(ODD),
        ),
        "test": TableMeasurement(
            {"test/image_to_text/median_rank": 2.5, "test/mean_R@K": 0.25},
            "test/mean_R@K",
            {
                "test/image_to_text/median_rank": Median(ranks),
                "test/mean_R@K": MeanOfMeans(
                    torch.rand(6, generator=generator),
                    torch.tensor([0, 0, 1, 1, 2, 2]),
                    torch.tensor([0, 1, 0, 1, 0, 1]),
                ),
            },
            describe(["a", "b", "c", "d"]),
        ),
        "labels 2": TableMeasurement(
            {"test/mean_average_precision": 0.5, "test/average_precision/a/values": 0.25},
            "test/mean_average_precision",
            {"test/mean_average_precision": MeanAveragePrecision(scores, targets)},
            describe(["a b", "b", "", "c", "a"]),
        ),
    }
    predictions = pd.DataFrame(
        {
            "row": range(2, len(ODD) + 2),
            "label": ODD,
            "prediction": ODD[::-1],
            "score": torch.rand(len(ODD), generator=generator).tolist(),
        }
    )
    return Measurement(
        tables,
        predictions,
        linear_probe={"test/accuracy": 1 / 3},
        calibration={"temperature": {"trained": 0.1, "fitted": 0.2}},
        probe=Probe(torch.rand(3, 4, generator=generator), torch.rand(2, 4, generator=generator)),
    )
