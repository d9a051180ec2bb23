"""Finds texts that differ for people and are equal to the model: in case, accents or spaces, or in unknown words."""

import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from finetune.core.errors import Concern
from finetune.data.checks.concerns import count, places_where, show_some
from finetune.data.checks.limits import CHUNK, bound_tokens, has_bert_rules
from finetune.data.checks.many_texts import SHOWN, Digests, DistinctTexts, digest, find_leaders, in_parts
from finetune.data.prepare.texts import TextEncoder, write_prompts
from finetune.data.table.cells import Integers, find_first_rows
from finetune.data.table.rows import Rows

LONGEST = 40  # letters shown of a text
LONGEST_WORD = 100  # letters; WordPiece takes a longer word for unknown


def number_texts(rows: Rows, encoder: TextEncoder) -> Integers:
    """Numbers captions, equal for equal tokens. Texts that are cut off are equal where what is left is.

    Args:
        rows: The table, which numbers equal captions alike.
        encoder: The checkpoint's.

    Returns:
        Int64 array of shape (N,): the caption ids, or of captions that are equal as tokens the least.
    """
    first = find_first_rows(rows.caption_ids)
    numbers, used = np.arange(len(first)), np.flatnonzero(first >= 0)
    keys = np.empty(len(used), "S16")
    _fill(keys, (digest(map(str.encode, _keys(texts, encoder))) for texts in in_parts(rows.captions, first[used])))
    leaders = find_leaders(keys)
    together = used[np.bincount(leaders)[leaders] > 1]
    tokens = np.empty(len(together), "S16")
    _fill(tokens, (_digest_tokens(texts, encoder) for texts in in_parts(rows.captions, first[together])))
    numbers[together] = together[find_leaders(tokens)]
    return numbers[rows.caption_ids]


def _fill(values: Digests, parts: Iterable[Digests]) -> None:
    start = 0
    for part in parts:
        values[start : start + len(part)] = part
        start += len(part)


def _digest_tokens(texts: list[str], encoder: TextEncoder) -> Digests:
    return digest(np.array(tokens, dtype=np.int64).tobytes() for tokens in _encode(texts, encoder))


def find_equal_captions(rows: Rows, encoder: TextEncoder) -> list[Concern]:
    """Finds captions that are equal to the model.

    Args:
        rows: The table, with caption ids as `number_texts` returns them.
        encoder: The checkpoint's.
    """
    first = find_first_rows(rows.caption_ids)
    leaders = first[rows.caption_ids]
    later = np.flatnonzero(leaders != np.arange(len(rows)))  # than the first row of their number
    pairs = zip(in_parts(rows.captions, later), in_parts(rows.captions, leaders[later]), strict=True)
    differs = np.fromiter((own != other for part in pairs for own, other in zip(*part, strict=True)), bool)
    is_shared = np.zeros(len(first), dtype=bool)
    is_shared[rows.caption_ids[later[differs]]] = True
    if not is_shared.any():
        return []
    shared = is_shared[rows.caption_ids]
    number = DistinctTexts(in_parts(rows.captions, np.flatnonzero(shared))).count
    groups = np.flatnonzero(is_shared)
    groups = groups[np.argsort(first[groups])]
    texts = [
        DistinctTexts(in_parts(rows.captions, np.flatnonzero(rows.caption_ids == group)), in_order=True)
        for group in groups[:SHOWN].tolist()
    ]
    described = _show_groups([(group.shown, group.count) for group in texts], len(groups), encoder)
    message = (
        f"{number:,} different captions are {count(len(groups), 'text', 'texts')} to the model: "
        f"{described}. In training, captions equal to it match each other's images."
    )
    return [Concern("equal_captions", message, places_where(rows, shared))]


def group_classes(classes: Sequence[str], templates: Sequence[str], encoder: TextEncoder) -> list[list[str]]:
    """Groups classes whose prompts are the same tokens in every template.

    Args:
        classes: Names.
        templates: Sentences with `{}` once.
        encoder: The checkpoint's.
    """
    tokens = _encode(write_prompts(classes, templates), encoder)
    groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for at, name in enumerate(classes):
        groups.setdefault(tuple(tokens[at * len(templates) : (at + 1) * len(templates)]), []).append(name)
    return list(groups.values())


def find_equal_classes(classes: Sequence[str], templates: Sequence[str], encoder: TextEncoder) -> list[Concern]:
    """Finds classes whose prompts are equal to the model. The arguments are those of `group_classes`."""
    groups = [names for names in group_classes(classes, templates, encoder) if len(names) > 1]
    if not groups:
        return []
    described = _show_groups([(sorted(names), len(names)) for names in groups], len(groups), encoder)
    message = (
        f"{sum(map(len, groups)):,} classes have the prompts of another one, as the model reads them: "
        f"{described}. Class prompts cannot tell them apart, so zero-shot figures take one for the "
        "other, and training without a head does so too. Give each a name of its own (data.table.names)."
    )
    return [Concern("equal_classes", message)]


def _show_groups(groups: Sequence[tuple[Sequence[str], int]], total: int, encoder: TextEncoder) -> str:
    """Shows the first groups: of each the first texts, and how many there are."""
    shown = [
        f"{show_some((text[:LONGEST] for text in texts), size)} (read as {_read(texts[0], encoder)!r})"
        for texts, size in groups[:SHOWN]
    ]
    more = f"; and {total - SHOWN:,} more such groups" if total > SHOWN else ""
    return "; ".join(shown) + more


def _read(text: str, encoder: TextEncoder) -> str:
    return encoder.decode(encoder.encode(text))[:LONGEST]


def _encode(texts: list[str], encoder: TextEncoder) -> list[tuple[int, ...]]:
    """Returns the token ids of each text, truncated as the model gets them."""
    found: list[tuple[int, ...]] = []
    for start in range(0, len(texts), CHUNK):
        found += map(tuple, encoder.encode_all(texts[start : start + CHUNK]))
    return found


def _keys(texts: list[str], encoder: TextEncoder) -> list[str]:
    """Returns a key for each text, equal for texts of equal tokens and for few others, though few texts are encoded.

    BERT's pieces of a text of English letters, put together, are the text without case and spaces, unless it is cut off
    or spells a special token. Other texts are encoded.
    """
    tokenizer = encoder.tokenizer
    plain = np.zeros(len(texts), dtype=bool)
    if has_bert_rules(tokenizer) and _spells_english(tokenizer):
        most = encoder.max_length - tokenizer.num_special_tokens_to_add()
        plain = bound_tokens(texts, tokenizer) <= most
        special = tokenizer.all_special_tokens
        plain &= [_is_plain(text, special) for text in texts]
    keys = ["".join(text.lower().split()) for text in texts]
    other = np.flatnonzero(~plain).tolist()
    frame = (tokenizer.cls_token, tokenizer.sep_token)
    for at, tokens in zip(other, _encode([texts[at] for at in other], encoder), strict=True):
        pieces = tokenizer.convert_ids_to_tokens(list(tokens))
        keys[at] = "".join(piece.removeprefix("##") for piece in pieces if piece not in frame)
    return keys


def _is_plain(text: str, special: Sequence[str]) -> bool:
    return (
        text.isascii()
        and text.isprintable()
        and not any(token in text for token in special)
        and (len(text) <= LONGEST_WORD or max(map(len, text.split())) <= LONGEST_WORD)
    )


def _spells_english(tokenizer: Any) -> bool:
    """Whether case does not count and every word of English letters has pieces, so that none is unknown."""
    letters = string.ascii_lowercase + string.digits
    pieces = {*letters, *string.punctuation, *(f"##{letter}" for letter in letters)}
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a" and pieces <= tokenizer.get_vocab().keys()
