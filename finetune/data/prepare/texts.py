"""Encodes texts as a checkpoint's processor does, and writes class names into templates."""

import json
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from finetune.core.errors import RecipeError

if TYPE_CHECKING:
    from transformers import AlignProcessor

PLACE = "{}"

TokenIds = npt.NDArray[np.int64]


class TextEncoder:
    """Encodes texts, truncated at the model's limit and padded no further than needed.

    Args:
        tokenizer: A tokenizer of transformers.
        max_length: Largest number of tokens of a text, special tokens included.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    @classmethod
    def from_processor(cls, processor: "AlignProcessor") -> Self:
        """Takes a processor's tokenizer, and the lower limit of the two."""
        tokenizer: Any = processor.tokenizer
        padded: Any = processor(text=[""])  # the processor pads to its limit: 64 for align-base
        return cls(tokenizer, min(len(padded["input_ids"][0]), tokenizer.model_max_length))

    @cached_property
    def fingerprint(self) -> str | None:
        """What decides on the tokens of a text; None where the tokenizer does not say."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        described = json.loads(backend.to_str()) | {"truncation": None, "padding": None}  # as the last call had them
        content = json.dumps([described, self.max_length], sort_keys=True)
        return blake2b(content.encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, truncated but not padded."""
        ids: list[int] = self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        return ids

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of one or more texts, as `encode` does, in less time."""
        found = self.tokenizer(texts, truncation=True, max_length=self.max_length, return_attention_mask=False)
        ids: list[list[int]] = found["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids as the model reads it, with `[UNK]` where it has no token."""
        frame = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.pad_token_id)
        text: str = self.tokenizer.decode([token for token in ids if token not in frame])
        return text

    def cut_off(self, text: str) -> str:
        """Returns the end of a text that `encode` cuts off; most texts lose nothing."""
        ids = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return self.decode(ids[self.max_length - self.tokenizer.num_special_tokens_to_add() :])

    def pad(self, texts: Sequence[list[int]]) -> tuple[TokenIds, TokenIds]:
        """Stacks token ids, padded to the longest text on the side that the tokenizer pads.

        Args:
            texts: B lists of token ids, as `encode` returns them.

        Returns:
            Input ids and attention mask (0 on padding), int64 arrays of shape (B, T).
        """
        length = max(map(len, texts), default=0)
        input_ids = np.full((len(texts), length), self.tokenizer.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(texts):
            start = length - len(ids) if self.tokenizer.padding_side == "left" else 0
            input_ids[row, start : start + len(ids)] = ids
            attention_mask[row, start : start + len(ids)] = 1
        return input_ids, attention_mask


def write_prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Writes each class name into each template: all templates of the first class, then of the next.

    Args:
        classes: Names, taken literally: braces in them have no meaning.
        templates: Sentences that hold `{}` once, in place of the name.

    Raises:
        RecipeError: If a template does not hold `{}` exactly once.

    Example:
        >>> write_prompts(["cat", "dog"], ["a {}", "one {}."])
        ['a cat', 'one cat.', 'a dog', 'one dog.']
    """
    for template in templates:
        if template.count(PLACE) != 1:
            raise RecipeError(
                f"Expected each template to hold {PLACE} once, where the class name goes, but got {template!r}. "
                f"Write it as in 'a photo of a {PLACE}.'"
            )
    return [template.replace(PLACE, name) for name in classes for template in templates]
