"""Finds texts that differ for people and are equal to the model: in case, accents or spaces, or in unknown words."""

import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from finetune.core.errors import Concern
from finetune.data.checks.concerns import count, places_where, show_some
from finetune.data.checks.limits import CHUNK, bound_tokens, has_bert_rules
from finetune.data.prepare.texts import TextEncoder, write_prompts
from finetune.data.table.cells import Integers
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
    ids, first, inverse = np.unique(rows.caption_ids, return_index=True, return_inverse=True)
    texts: list[str] = rows.captions[first].tolist()
    least: dict[str, int] = {}
    leaders = np.array([least.setdefault(key, at) for at, key in enumerate(_keys(texts, encoder))], dtype=np.int64)
    together = np.flatnonzero(np.bincount(leaders)[leaders] > 1).tolist()
    numbers, earliest = np.arange(len(texts)), dict[tuple[int, ...], int]()
    for at, tokens in zip(together, _encode([texts[at] for at in together], encoder), strict=True):
        numbers[at] = earliest.setdefault(tokens, at)
    return ids[numbers][inverse]


def find_equal_captions(rows: Rows, encoder: TextEncoder) -> list[Concern]:
    """Finds captions that are equal to the model.

    Args:
        rows: The table, with caption ids as `number_texts` returns them.
        encoder: The checkpoint's.
    """
    _, first, inverse = np.unique(rows.caption_ids, return_index=True, return_inverse=True)
    shared = np.isin(rows.caption_ids, rows.caption_ids[rows.captions != rows.captions[first][inverse]])
    if not shared.any():
        return []
    texts: dict[int, dict[str, None]] = {}
    for number, text in zip(rows.caption_ids[shared].tolist(), rows.captions[shared].tolist(), strict=True):
        texts.setdefault(number, {})[text] = None
    number = sum(map(len, texts.values()))
    message = (
        f"{number:,} different captions are {count(len(texts), 'text', 'texts')} to the model: "
        f"{_show_groups(texts.values(), encoder)}. In training, captions equal to it match each other's images."
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
    message = (
        f"{sum(map(len, groups)):,} classes have the prompts of another one, as the model reads them: "
        f"{_show_groups(groups, encoder)}. Class prompts cannot tell them apart, so zero-shot figures take one for the "
        "other, and training without a head does so too. Give each a name of its own (data.table.names)."
    )
    return [Concern("equal_classes", message)]


def _show_groups(groups: Iterable[Iterable[str]], encoder: TextEncoder) -> str:
    found = [sorted(texts) for texts in groups]
    shown = [f"{show_some(text[:LONGEST] for text in texts)} (read as {_read(texts[0], encoder)!r})" for texts in found]
    more = f"; and {len(found) - 3:,} more such groups" if len(found) > 3 else ""
    return "; ".join(shown[:3]) + more


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
