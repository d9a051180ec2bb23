"""Warns of what a checkpoint's limits do to a table: texts that it cuts off, images that it enlarges."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers.pre_tokenizers import BertPreTokenizer

from finetune.core.errors import Concern
from finetune.data.checks.concerns import count, places_where, show_some
from finetune.data.checks.many_texts import SHOWN, DistinctTexts, digest, in_parts
from finetune.data.prepare.images import ImagePreparation
from finetune.data.prepare.texts import TextEncoder, write_prompts
from finetune.data.table.cells import PART, Integers, find_distinct
from finetune.data.table.rows import Rows

CHUNK = 10_000  # texts encoded at a time


def find_long_texts(rows: Rows, templates: tuple[str, ...], texts: TextEncoder) -> list[Concern]:
    """Finds texts that the checkpoint cuts off.

    Args:
        rows: The table.
        templates: Sentences that labels are written into; empty for captions.
        texts: The checkpoint's text encoder.
    """
    if templates:
        prompts = write_prompts(rows.classes, templates)
        lost = _count_lost(prompts, texts)
        long = [text for text, tokens in zip(prompts, lost.tolist(), strict=True) if tokens]
        return _describe("class prompt", long, len(long), int(lost.sum()), texts) if long else []
    total, is_long = 0, np.zeros(len(rows), dtype=bool)
    digests, shown = np.empty(0, "S16"), list[str]()
    for start in range(0, len(rows), PART):
        distinct, _, inverse = find_distinct(rows.captions[start : start + PART])
        lost = _count_lost(distinct.tolist(), texts)
        is_long[start : start + PART] = (lost > 0)[inverse]
        long = distinct[lost > 0].tolist()
        own = digest(map(str.encode, long))
        total += int(lost[lost > 0][~np.isin(own, digests)].sum())
        digests, shown = np.union1d(digests, own), sorted({*shown, *long[:SHOWN]})[:SHOWN]
    if not len(digests):
        return []
    return _describe("caption", shown, len(digests), total, texts, places_where(rows, is_long))


def _count_lost(texts: list[str], encoder: TextEncoder) -> Integers:
    """How many tokens of each text are cut off."""
    most = encoder.max_length - encoder.tokenizer.num_special_tokens_to_add()
    doubtful = np.flatnonzero(bound_tokens(texts, encoder.tokenizer) > most)
    lost = np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(doubtful), CHUNK):
        at = doubtful[start : start + CHUNK]
        made = encoder.tokenizer(
            [texts[number] for number in at.tolist()],
            truncation=False,
            verbose=False,
            return_attention_mask=False,
            return_length=True,
        )
        lost[at] = np.maximum(0, np.array(made["length"]) - encoder.max_length)
    return lost


def _describe(
    kind: str, long: Sequence[str], number: int, lost: int, texts: TextEncoder, places: tuple[str, ...] = ()
) -> list[Concern]:
    message = (
        f"{count(number, f'{kind} is', f'{kind}s are')} longer than {texts.max_length} tokens; "
        f"{count(lost, 'token is', 'tokens are')} cut off: {show_some((text[:40] for text in long), number)}."
    )
    return [Concern("long_texts", message, places)]


def has_bert_rules(tokenizer: Any) -> bool:
    """Whether a tokenizer splits a text into words as BERT's does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and isinstance(backend.pre_tokenizer, BertPreTokenizer)


def bound_tokens(texts: list[str], tokenizer: Any) -> Integers:
    """Bounds the number of tokens of each text, special ones aside, so that most texts need not be encoded.

    A token stands for at least one byte. BERT's rules never join words into a token, so a BERT text has at most the sum
    of its words' tokens; only words that occur more than once are encoded for that sum.
    """
    if not has_bert_rules(tokenizer):
        return np.array([len(text.encode()) for text in texts], dtype=np.int64)
    times = Counter(chain.from_iterable(text.split(" ") for text in texts))
    bounds = {word: len(word.encode()) for word in times}
    common = [word for word, seen in times.items() if seen > 1]
    for start in range(0, len(common), CHUNK):
        chunk = common[start : start + CHUNK]
        encoded = tokenizer(chunk, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        bounds.update(zip(chunk, map(len, encoded), strict=True))
    return np.array([sum(map(bounds.__getitem__, text.split(" "))) for text in texts], dtype=np.int64)


def find_small_images(rows: Rows, sizes: npt.NDArray[np.int64], images: ImagePreparation) -> list[Concern]:
    """Finds images that the checkpoint's processor enlarges.

    Args:
        rows: The table.
        sizes: Int64 array of shape (N, 2): width and height of each image, 0 where it cannot be read.
        images: The checkpoint's image preparation.
    """
    if images.size is None:
        return []
    height, width = images.size
    small = (sizes[:, 0] > 0) & ((sizes[:, 0] < width) | (sizes[:, 1] < height))
    distinct = DistinctTexts(in_parts(rows.images, np.flatnonzero(small))).count
    if not distinct:
        return []
    smaller = count(distinct, "image is", "images are")
    message = f"{smaller} smaller than {width} x {height}, the size to which every image is resized."
    return [Concern("small_images", message, places_where(rows, small))]
