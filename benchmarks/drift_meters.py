"""Which drift meter predicts best what is lost on another domain, over the adapters that `drift.py` trained.

    python benchmarks/drift.py && python benchmarks/drift_meters.py

Prints Spearman's rank correlation of each meter with the relative loss of the mean hit rate on the photographs: over
the adapters by which a meter is chosen, within each of their tasks, and over the other adapters. Then prints the chosen
meter, `finetune.evaluation.drift.drift`, of each adapter. Both tables are kept in `benchmarks/results/drift.json`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from drift import CHOOSING, HOLDING, OUTPUT, Adapter
from safetensors.torch import load_file
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import spearmanr

from finetune.core.files import write_json
from finetune.evaluation.drift import drift
from finetune.run.measurement import Probe

RESULTS = Path(__file__).parent / "results" / "drift.json"
CHOSEN = "scores, both centred, concordance"
TEMPERATURE = 0.05
Array = np.ndarray
Meter = Callable[[Probe, Probe], float]


def scores(probe: Probe) -> Array:
    """Cosine similarities of shape (images, words)."""
    return (probe.image_embeds @ probe.text_embeds.T).double().numpy()


def centre(values: Array, axis: int) -> Array:
    return values - values.mean(axis=axis, keepdims=True)


def correlation(before: Array, after: Array, axis: int) -> Array:
    """Pearson's coefficient along an axis."""
    before, after = centre(before, axis), centre(after, axis)
    norms = np.linalg.norm(before, axis=axis) * np.linalg.norm(after, axis=axis)
    return (before * after).sum(axis) / np.maximum(norms, 1e-12)


def concordance(before: Array, after: Array, axis: int | None = None) -> Array:
    """2 cov / (var + var): Lin's 1989 coefficient of centred values, which is small also where one is flat."""
    return 2 * (before * after).sum(axis) / ((before**2).sum(axis) + (after**2).sum(axis))


def double_centre(values: Array) -> Array:
    return centre(centre(values, 0), 1)


def kernel_alignment(before: Array, after: Array) -> float:
    """Linear CKA (Kornblith et al. 2019)."""
    before, after = centre(before, 0), centre(after, 0)
    norm = np.linalg.norm(before.T @ before) * np.linalg.norm(after.T @ after)
    return float(np.linalg.norm(before.T @ after) ** 2 / norm)


def divergence(before: Probe, after: Probe) -> float:
    p, q = (softmax(scores(each) / TEMPERATURE, axis=1) for each in (before, after))
    return float(np.mean(jensenshannon(p, q, base=2, axis=1) ** 2))


def geometry(before: Array, after: Array) -> float:
    """The concordance of the centred clouds' matrices of inner products."""
    before, after = centre(before, 0), centre(after, 0)
    return float(concordance(before @ before.T, after @ after.T))


def neighbours_kept(before: Array, after: Array, k: int = 10) -> float:
    """The share of each point's k nearest that stay among them."""
    found = []
    for cloud in (before, after):
        similarities = cloud @ cloud.T
        np.fill_diagonal(similarities, -np.inf)
        found.append(np.argsort(-similarities.round(5), axis=1, kind="stable")[:, :k])
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*found, strict=True)]))


def best_kept(before: Array, after: Array, k: int) -> float:
    """The share of each row's k best that stay among them."""
    tops = [np.argsort(-each.round(5), axis=1, kind="stable")[:, :k] for each in (before, after)]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*tops, strict=True)]))


def expected_ranks(before: Array, after: Array) -> Array:
    """The rank after training of the column that was each row's best before, with ties in random order."""
    own = np.take_along_axis(after, before.argmax(axis=1)[:, None], axis=1)
    better, as_good = (after > own + 1e-5).sum(1), (after >= own - 1e-5).sum(1)
    return (better + 1 + as_good) / 2


def still_found(before: Array, after: Array, k: int) -> float:
    return float((expected_ranks(before, after) <= k).mean())


def log_rank(before: Array, after: Array) -> float:
    """1 where the base's best stays first, 0 where its rank is that of chance."""
    return float(1 - np.log(expected_ranks(before, after)).mean() / np.log((after.shape[1] + 1) / 2))


def of_scores(kept: Callable[[Array, Array], float]) -> Meter:
    return lambda before, after: 1 - float(np.mean(kept(scores(before), scores(after))))


def of_words(kept: Callable[[Array, Array], float]) -> Meter:
    return lambda before, after: 1 - kept(*(each.text_embeds.double().numpy() for each in (before, after)))


def of_images(kept: Callable[[Array, Array], float]) -> Meter:
    return lambda before, after: 1 - kept(*(each.image_embeds.double().numpy() for each in (before, after)))


def of_both(kept: Callable[[Array, Array], float], combine: Callable[[Sequence[float]], float] = np.mean) -> Meter:
    return lambda before, after: float(combine([of(kept)(before, after) for of in (of_words, of_images)]))


def aligned(before: Array, after: Array) -> float:
    """The mean cosine of each embedding with itself before training."""
    return float((before * after).sum(1).mean())


METERS: dict[str, Meter] = {
    "Jensen-Shannon divergence of the words' probabilities": divergence,
    "scores, correlation over words": of_scores(lambda b, a: correlation(b, a, 1)),
    "scores, correlation over images": of_scores(lambda b, a: correlation(b, a, 0)),
    "scores, both centred, correlation": of_scores(
        lambda b, a: correlation(double_centre(b).reshape(1, -1), double_centre(a).reshape(1, -1), 1)
    ),
    "scores, concordance over words": of_scores(lambda b, a: concordance(centre(b, 1), centre(a, 1), 1)),
    "scores, concordance over images": of_scores(lambda b, a: concordance(centre(b, 0), centre(a, 0), 0)),
    "scores, concordance over words, pooled": of_scores(lambda b, a: concordance(centre(b, 1), centre(a, 1))),
    "scores, concordance over images, pooled": of_scores(lambda b, a: concordance(centre(b, 0), centre(a, 0))),
    CHOSEN: drift,
    "scores, mean difference": lambda b, a: float(np.abs(scores(b) - scores(a)).mean()),
    **{f"images' {k} best words kept": of_scores(lambda b, a, k=k: best_kept(b, a, k)) for k in (1, 10, 100)},
    **{f"words' {k} best images kept": of_scores(lambda b, a, k=k: best_kept(b.T, a.T, k)) for k in (1, 10)},
    **{f"images' best word found, hit@{k}": of_scores(lambda b, a, k=k: still_found(b, a, k)) for k in (1, 10, 100)},
    **{f"words' best image found, hit@{k}": of_scores(lambda b, a, k=k: still_found(b.T, a.T, k)) for k in (1, 10)},
    "images' best word, log rank": of_scores(log_rank),
    "words' best image, log rank": of_scores(lambda b, a: log_rank(b.T, a.T)),
    **{
        f"{where}, {name}": of(kept)
        for where, of in (("words", of_words), ("images", of_images), ("words and images", of_both))
        for name, kept in (
            ("kernel alignment", kernel_alignment),
            ("concordance of inner products", geometry),
            ("10 nearest kept", neighbours_kept),
            ("cosine with themselves", aligned),
        )
    },
    "worse of words and images, concordance of inner products": of_both(geometry, np.max),
    "worse of words and images, 10 nearest kept": of_both(neighbours_kept, np.max),
}


def read(folder: Path, name: str) -> tuple[Probe, float]:
    """Reads what `drift.py` kept of a model."""
    kept = load_file(folder / f"{name}.safetensors")
    return Probe(kept["image_embeds"].float(), kept["text_embeds"].float()), float(kept["retention"])


def measure_all(folder: Path, adapters: Sequence[Adapter], meters: Mapping[str, Meter]) -> dict[str, dict[str, float]]:
    """Computes the loss and each meter, by adapter."""
    found = {}
    for adapter in adapters:
        (base, could), (adapted, can) = read(folder, adapter.task), read(folder, adapter.name)
        found[adapter.name] = {name: float(meter(base, adapted)) for name, meter in meters.items()}
        found[adapter.name]["loss"] = 1 - can / could
    return found


def correlate(found: Mapping[str, Mapping[str, float]], meter: str, task: str = "") -> float:
    """Correlates the ranks of a meter and the loss (Spearman) over the adapters of a task, or all."""
    chosen = [values for name, values in found.items() if name.startswith(task)]
    return float(spearmanr([values[meter] for values in chosen], [values["loss"] for values in chosen]).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=OUTPUT, help="the `--output` of drift.py")
    folder = parser.parse_args().input
    choosing, holding = (measure_all(folder, group, METERS) for group in (CHOOSING, HOLDING))
    table = {
        meter: {
            "all": correlate(choosing, meter),
            "digits": correlate(choosing, meter, "digits"),
            "emoji": correlate(choosing, meter, "emoji"),
            "others": correlate(holding, meter),
        }
        for meter in METERS
    }
    adapters = {
        name: {"drift": values[CHOSEN], "loss": values["loss"]} for name, values in (choosing | holding).items()
    }
    write_json(RESULTS, {"meters": table, "adapters": adapters})
    print("| meter | all | digits | emoji | others |\n| --- | ---: | ---: | ---: | ---: |")
    for meter, values in sorted(table.items(), key=lambda item: -item[1]["all"]):
        print(f"| {meter} | " + " | ".join(f"{value:.2f}" for value in values.values()) + " |")
    print("\n| adapter | drift | lost on the photographs |\n| --- | ---: | ---: |")
    for name, values in adapters.items():
        print(f"| {name} | {values['drift']:.3f} | {100 * values['loss']:.1f} % |")


if __name__ == "__main__":
    main()
