"""How often the interval of a difference contains the truth, in simulated tables; it promises 95 %.

    python benchmarks/interval_coverage.py

Draws tables of 300 rows from a population of a million on which two models are known, for each metric that has an
interval, and for the calibration error, which has none because of this result.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.metrics.bootstrap import paired_difference
from finetune.metrics.calibration import BINS
from finetune.metrics.statistics import Figure, MeanAveragePrecision, MeanOfMeans, Median, mean

POPULATION, ROWS, TABLES = 1_000_000, 300, 200


@dataclass(frozen=True)
class CalibrationError(Figure):
    """The expected calibration error as a figure."""

    confidences: Tensor
    correct: Tensor

    @property
    def units(self) -> int:
        return len(self.correct)

    def __call__(self, counts: Tensor) -> Tensor:
        bins = (self.confidences * BINS).long().clamp_max(BINS - 1)
        gaps = (counts * (self.correct - self.confidences)[:, None]).double()
        return counts.new_zeros(BINS, counts.shape[1]).double().index_add(0, bins, gaps).abs().sum(0) / counts.sum(0)


def build_population(generator: torch.Generator) -> dict[str, Callable[[int, Tensor], Figure]]:
    """Builds each metric of either model (0, 1) on chosen rows of a population; the second model is a little better."""
    difficulty = torch.randn(POPULATION, generator=generator)
    noise = torch.randn(2, POPULATION, generator=generator)
    skill = torch.stack([noise[0] - difficulty, noise[1] - difficulty + 0.3])
    hits = (skill > 0).float()
    ranks = (5 - 4 * skill).exp2().clamp(1, 300).round()
    labels = torch.multinomial(torch.arange(1.0, 9.0), POPULATION, replacement=True, generator=generator)
    targets = torch.rand(POPULATION, 4, generator=generator) < 0.2
    scores = [
        gain * targets + torch.randn(POPULATION, 4, generator=generator) - 0.3 * difficulty[:, None]
        for gain in (1.0, 1.3)
    ]
    confidences = torch.rand(POPULATION, generator=generator).sqrt()
    draws = torch.rand(POPULATION, generator=generator)
    correct = [(draws < confidences - gap).float() for gap in (0.1, 0.02)]
    return {
        "accuracy, R@K": lambda model, rows: mean(hits[model, rows]),
        "median_rank": lambda model, rows: Median(ranks[model, rows]),
        "mean_per_class_recall": lambda model, rows: MeanOfMeans(
            hits[model, rows], torch.arange(len(rows)), labels[rows]
        ),
        "mean_average_precision": lambda model, rows: MeanAveragePrecision(scores[model][rows], targets[rows]),
        "expected_calibration_error": lambda model, rows: CalibrationError(confidences[rows], correct[model][rows]),
    }


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    print("| metric | true difference | tables whose interval holds it |\n| --- | ---: | ---: |")
    for name, build in build_population(generator).items():
        everything = torch.arange(POPULATION)
        truth = float(build(1, everything).point_estimate() - build(0, everything).point_estimate())
        held = 0
        for _ in range(TABLES):
            rows = torch.randint(0, POPULATION, (ROWS,), generator=generator)
            found = paired_difference(build(0, rows), build(1, rows))
            held += found.low <= truth <= found.high
        print(f"| {name} | {truth:+.3f} | {100 * held / TABLES:.0f} % |", flush=True)


if __name__ == "__main__":
    main()
