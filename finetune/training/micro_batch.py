"""How many rows of a batch the towers may embed at a time."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.core.types import Batch, Embeddings
from finetune.model.lora import TowerLora
from finetune.training.memory import PeakBytes, free_bytes

SHARES = {"cpu": 0.5}
"""Share of the free memory that a part may take. Beside the CPU's tensors its allocator keeps half as much again."""

USUAL_SHARE = 0.8
"""The same of other devices."""


ROWS_AT_FIRST = 8
"""Most rows at a time as long as `auto` is not settled, so in what is timed or validated before the training."""


class Portion(NamedTuple):
    """What was found.

    Attributes:
        rows: Most rows at a time; None for the whole batch, which is not computed a second time.
        of: Rows of the batch.
        row_bytes: What each further row takes.
        usable_bytes: What there is for all.
    """

    rows: int | None
    of: int
    row_bytes: int
    usable_bytes: int

    def __str__(self) -> str:
        rows = f"{self.rows} of {self.of:,} rows" if self.rows else f"all {self.of:,} rows"
        sizes = f"{self.row_bytes / 2**20:,.0f} MiB a row, of {self.usable_bytes / 2**30:,.1f} GiB"
        return f"embeds {rows} at a time ({sizes}): model.micro_batch {self.rows or 'null'} repeats it"


def require_micro_batch(micro_batch: int | str | None, image_lora: TowerLora | None) -> None:
    """Refuses a number of rows that means nothing, or that changes what is computed.

    Args:
        micro_batch: A number, `auto` or None, see `finetune.training.task.AlignTask`.
        image_lora: What is trained of the image tower.

    Raises:
        ValueError: If the number is below 1, or statistics follow the batch.
    """
    is_known = micro_batch in (None, "auto") or (isinstance(micro_batch, int) and not isinstance(micro_batch, bool))
    if not is_known or (isinstance(micro_batch, int) and micro_batch < 1):
        raise ValueError(f"Expected micro_batch to be at least 1, auto or null, but got {micro_batch!r}.")
    if micro_batch is not None and image_lora is not None and image_lora.train_statistics:
        raise ValueError(
            f"Expected micro_batch to be null with image_lora.train_statistics, but got {micro_batch}: the statistics "
            "of a part are not the batch's. Remove one of them, or lower data.batch_size."
        )


def choose_portion(
    embed: Callable[[Batch], Embeddings],
    trained: Iterable[Tensor],
    batch: Batch,
    device: torch.device,
    free: int | None = None,
    beside: int = 0,
) -> Portion:
    """Finds how many rows fit into the memory that is free, by embedding two and four with their gradients.

    Gradients are dropped, and random numbers left as they were. All rows are taken if they fit, else the largest power
    of two that does, at least 1. The loss is not asked: what it takes depends on the batch alone.

    Args:
        embed: The task, on `device`, under the precision of its training.
        trained: All that is trained, whether it is frozen just now or not.
        batch: The first one. Of its rows only sizes are used; each text counts as long as the longest.
        device: Where the towers are.
        free: Bytes that are free; None asks the device.
        beside: Images that a step embeds beside those of the batch.
    """
    parameters = list(trained)
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            two, four = (_measure(embed, parameters, _imitate(batch, rows, device)) for rows in (2, 4))
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
    of, row_bytes = len(batch.rows), max((four - two) // 2, 1)
    kept = 3 * sum(parameter.nbytes for parameter in parameters)  # its gradient and Adam's two moments
    left = (free_bytes(device) if free is None else free) - kept
    usable = max(int(SHARES.get(device.type, USUAL_SHARE) * left), 0)
    fitting = (usable - (two - 2 * row_bytes)) // row_bytes
    rows = None if fitting >= of + beside else 1 << max(fitting, 1).bit_length() - 1
    return Portion(rows, of, row_bytes, usable)


def _measure(embed: Callable[[Batch], Embeddings], parameters: list[Tensor], batch: Batch) -> int:
    meter = PeakBytes()
    with meter, torch.enable_grad():
        embeddings = embed(batch)
        features = [embeddings.image_features, embeddings.text_features]
        ends = [part for part in features if part is not None and part.requires_grad]
        if ends:
            torch.autograd.grad(ends, parameters, [torch.ones_like(part) for part in ends], allow_unused=True)
    return meter.peak


def _imitate(batch: Batch, rows: int, device: torch.device) -> Batch:
    """Rows like those of a batch, all different, without padding."""
    few = Batch(*(part[torch.arange(rows) % len(part)].to(device) if len(part) else part for part in batch))
    return few._replace(
        pixel_values=torch.empty_like(few.pixel_values).random_(256),
        input_ids=torch.empty_like(few.input_ids).random_(1, 1 + int(batch.input_ids.max())),
        attention_mask=torch.ones_like(few.attention_mask),
    )
