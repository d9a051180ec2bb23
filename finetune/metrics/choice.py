"""Which metric a table is measured by."""

from finetune.core.types import ClassPrompts
from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.average_precision import AveragePrecision
from finetune.metrics.retrieval import Retrieval


def choose_metric(prompts: ClassPrompts | None) -> Retrieval | ClassAccuracy | AveragePrecision:
    """Returns a fresh metric: retrieval; or accuracy of classes; or average precision, where an image may have several.

    Args:
        prompts: The classes of the table, or None where it has no labels.
    """
    if prompts is None:
        return Retrieval()
    return AveragePrecision(prompts.names) if prompts.is_multilabel else ClassAccuracy()
