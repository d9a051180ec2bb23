"""The one loop over images or texts: a model, batches, a device, a precision; results in order."""

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from finetune.core import processes
from finetune.core.bar import Bar
from finetune.core.errors import RecipeError
from finetune.core.types import ClassPrompts, PixelBatch, Texts
from finetune.inference.pictures import IMAGES
from finetune.model.towers import AlignTowers

TEXTS = 256
"""Texts embedded at a time."""

Given = TypeVar("Given", bound=tuple[Any, ...])
Found = TypeVar("Found", bound=tuple[Any, ...])


@torch.no_grad()
def embed(
    encode: Callable[[Given], Found],
    batches: Iterable[Given],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    progress: str | None = None,
    shared: bool = False,
) -> Found:
    """Asks a model about batches, one after the other.

    Args:
        encode: A model on `device`, or one of its methods: from a named tuple of tensors, such as `Batch` or `Texts`,
            to a named tuple of tensors with a row for each row of the batch, such as `Answers` or `Embeddings`.
        batches: What it is asked, in order.
        device: Where the batches are moved.
        dtype: Precision of the forward pass: float32, or what autocast computes in.
        progress: Title under which progress is shown; None shows none.
        shared: Whether other processes ask the same model about the other rows of each batch, as the loaders of
            `ImageTextDataModule` divide them. Each process then has all answers.

    Returns:
        The answers to all batches in one named tuple, on the CPU and in float32 or whole numbers. A tensor without
        rows, such as a temperature, is that of the first batch; a field that is None stays None.

    Raises:
        ValueError: If there is no batch.
    """
    parts: list[Found] = []
    for batch in _show(batches, progress):
        moved = _rebuild(batch, (part.to(device) if isinstance(part, Tensor) else part for part in batch))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found = encode(moved)
        kept = _rebuild(found, map(_keep, found))
        parts.append(gather(kept) if shared else kept)
    if not parts:
        raise ValueError("Expected at least one batch to embed, but got none.")
    like, columns = parts[0], [*zip(*parts, strict=True)][::-1]
    del found, parts  # so that what is joined below is held once
    return _rebuild(like, (_join(columns.pop()) for _ in like))


def gather(found: Found) -> Found:
    """Returns the answers to a whole batch in each of the processes that share it.

    Args:
        found: The answers to this process's rows: a named tuple of tensors, scalars, and None.
    """
    if processes.count() == 1:
        return found
    counts = processes.count_rows(max(len(part) for part in found if part is not None and part.ndim))
    return _rebuild(
        found, (processes.gather_rows(part, counts) if part is not None and part.ndim else part for part in found)
    )


def embed_texts(towers: AlignTowers, texts: Texts, device: torch.device) -> Tensor:
    """Returns unit vectors of texts, float32 of shape (B, D), on the CPU.

    Args:
        towers: The model, on `device`.
        texts: Token ids of B texts, padded at their ends.
        device: Where the text tower runs.
    """
    return normalize(embed_text_features(towers, texts, device), dim=-1)


def embed_text_features(towers: AlignTowers, texts: Texts, device: torch.device, at_a_time: int = TEXTS) -> Tensor:
    """Returns features of texts, not normalised, float32 of shape (B, D), on the CPU.

    Texts of like length are embedded together, so that little padding is computed.

    Args:
        towers: The model, on `device`.
        texts: Token ids of B texts, padded at their ends.
        device: Where the text tower runs.
        at_a_time: Most texts that are embedded at a time.
    """
    lengths = texts.attention_mask.sum(1)
    order = lengths.argsort(stable=True)
    chunks = (
        Texts(texts.input_ids[rows, :longest], texts.attention_mask[rows, :longest])
        for rows in order.split(at_a_time)
        for longest in [int(lengths[rows[-1]])]
    )
    features = embed(towers.text_embeddings, chunks, device).text_features
    assert features is not None
    return features[order.argsort().cpu()]


def embed_image_features(towers: AlignTowers, pixel_values: Tensor, device: torch.device) -> Tensor:
    """Returns features of images, not normalised, float32 of shape (B, D), on the CPU.

    Args:
        towers: The model, on `device`.
        pixel_values: As for `AlignTowers.image_features`, on any device.
        device: Where the image tower runs.
    """
    features = embed(towers.image_embeddings, map(PixelBatch, pixel_values.split(IMAGES)), device).image_features
    assert features is not None
    return features


def embed_classes(towers: AlignTowers, prompts: ClassPrompts, device: torch.device) -> Tensor:
    """Returns one unit vector for each class, the mean over its prompts, float32 of shape (C, D), on `device`.

    Args:
        towers: The model, on `device`.
        prompts: The classes.
        device: Where the text tower runs.
    """
    embeds = embed_texts(towers, Texts(prompts.input_ids, prompts.attention_mask), device)
    return class_embeddings(embeds, prompts.label_ids.cpu()).to(device)


def class_embeddings(prompt_embeds: Tensor, label_ids: Tensor) -> Tensor:
    """Returns one unit vector for each class: the normalised mean of its normalised prompts.

    The prompt ensemble of Radford et al. 2021 (arXiv 2103.00020, section 3.1.4).

    Args:
        prompt_embeds: Float tensor of shape (P, D), normalised here.
        label_ids: Int64 tensor of shape (P,), the class of each prompt; each of 0 .. C-1 occurs.

    Returns:
        Tensor of shape (C, D), in float32 where the prompts are in half precision.

    Raises:
        ValueError: If a class has no prompt.

    Example:
        >>> class_embeddings(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 5.0]]), torch.tensor([0, 0, 1]))
        tensor([[0.7071, 0.7071],
                [0.0000, 1.0000]])
    """
    counts = torch.bincount(label_ids)
    if not counts.all():
        empty = int((counts == 0).nonzero()[0])
        raise ValueError(f"Expected a prompt for each class, but got none for class {empty}.")
    dtype = torch.promote_types(prompt_embeds.dtype, torch.float32)
    unit = normalize(prompt_embeds.to(dtype), dim=-1)
    sums = unit.new_zeros(len(counts), unit.shape[1]).index_add(0, label_ids, unit)
    return normalize(sums / counts[:, None], dim=-1)


def find_device(accelerator: str = "auto", option: str = "trainer.accelerator") -> torch.device:
    """Finds the device that a model is asked on.

    Args:
        accelerator: As for Lightning's `Trainer`: `auto` for the fastest device of this machine, `cpu`, `gpu`, `cuda`,
            `mps`, or another of torch's.
        option: What the user calls it, for the message.

    Raises:
        RecipeError: If this machine has no such accelerator.
    """
    fastest = torch.accelerator.current_accelerator(check_available=True)
    if accelerator == "cpu" or (accelerator == "auto" and fastest is None):
        return torch.device("cpu")
    if fastest is not None and accelerator in ("auto", "gpu", fastest.type):
        return fastest
    raise RecipeError(
        f"Expected {option} to be one of this machine, but got {accelerator!r}. "
        f"Set it to auto, or to one of: cpu{f', {fastest.type}' if fastest else ''}."
    )


def _show(batches: Iterable[Given], title: str | None) -> Iterator[Given]:
    total = len(batches) if isinstance(batches, Sized) else None
    with Bar(title or "", total, shown=title is not None and processes.is_first()) as bar:
        for batch in batches:
            yield batch
            bar.advance(1, len(batch[0]) * processes.count())


def _rebuild(like: Found, fields: Iterable[Any]) -> Found:
    """A named tuple of the same kind."""
    kind: Any = type(like)
    found: Found = kind(*fields)
    return found


def _keep(part: Tensor | None) -> Tensor | None:
    if part is None:
        return None
    return (part.float() if part.is_floating_point() else part).cpu()


def _join(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    whole = [part for part in parts if part is not None]
    if not whole:
        return None
    return torch.cat(whole) if whole[0].ndim else whole[0]
