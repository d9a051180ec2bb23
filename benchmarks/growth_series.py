"""What the growth benchmark repeats at growing sizes, and how time and memory should grow."""

from dataclasses import dataclass

import growth_models as models
import growth_tables as tables
from growth_tables import Prepare

from finetune.data.loading.sampling import ClassBalanced, WeightedRows
from finetune.objectives import Contrastive, Sigmoid


@dataclass(frozen=True)
class Series:
    """Something that is repeated at growing sizes.

    Args:
        name: What it is.
        unit: What grows.
        sizes: How many of them.
        time: Expected exponent of time: 0 constant, 1 linear, 2 quadratic.
        memory: Expected exponent of memory.
        prepare: Returns the work of a size; is given a folder to write into. It is not measured.
    """

    name: str
    unit: str
    sizes: tuple[int, ...]
    time: float
    memory: float
    prepare: Prepare


THOUSANDS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
CLASS_COUNTS = (10, 30, 100, 300, 1_000, 3_000, 10_000)
BATCHES = (16, 32, 64, 128, 256, 512)
LARGE_BATCHES = (64, 128, 256, 512, 1024, 2048, 4096)

SERIES = (
    Series("read, captions", "rows", THOUSANDS, 1, 1, tables.read("caption")),
    Series("read, labels", "rows", THOUSANDS, 1, 1, tables.read("label")),
    Series("check, captions", "rows", THOUSANDS, 1, 1, tables.check("caption")),
    Series("check, labels", "rows", THOUSANDS, 1, 1, tables.check("label")),
    Series("equal captions", "rows", THOUSANDS, 1, 1, tables.compare_tokens),
    Series("order of an epoch", "rows", THOUSANDS, 1, 1, tables.go_around(None)),
    Series("order, classes balanced", "rows", THOUSANDS, 1, 1, tables.go_around(ClassBalanced())),
    Series("order, by weight", "rows", THOUSANDS, 1, 1, tables.go_around(WeightedRows())),
    Series("retrieval", "rows", THOUSANDS[:4], 2, 1, models.retrieve),
    Series("nearest neighbours", "rows", THOUSANDS[:4], 2, 1, models.vote),
    Series("accuracy", "rows", THOUSANDS[:6], 1, 1, models.by_rows(models.accuracy)),
    Series("average precision", "rows", THOUSANDS[:5], 1, 1, models.by_rows(models.average_precision)),
    Series("interval of a difference", "rows", THOUSANDS[:5], 1, 1, models.bootstrap),
    Series("predictions", "rows", THOUSANDS[:5], 1, 1, tables.predict_rows),
    Series("training step", "batch", BATCHES, 1, 1, models.step),
    Series("contrastive loss", "batch", LARGE_BATCHES, 2, 2, models.lose(Contrastive())),
    Series("sigmoid loss", "batch", LARGE_BATCHES, 2, 2, models.lose(Sigmoid())),
    Series("step of the text tower", "tokens", (8, 16, 24, 32, 48, 64), 1, 1, models.step_of_texts),
    Series("read, labels", "classes", CLASS_COUNTS, 0, 0, tables.read_classes),
    Series("class prompts", "classes", CLASS_COUNTS[:6], 1, 1, models.embed_prompts),
    Series("step of a head", "classes", CLASS_COUNTS, 1, 1, models.step_of_head),
    Series("head start from a probe", "classes", CLASS_COUNTS, 1, 1, models.start_from_probe),
    Series("accuracy", "classes", CLASS_COUNTS, 1, 1, models.by_classes(models.accuracy)),
    Series("average precision", "classes", CLASS_COUNTS, 1, 1, models.by_classes(models.average_precision)),
    Series("predictions", "classes", CLASS_COUNTS, 1, 1, tables.predict_classes),
)
