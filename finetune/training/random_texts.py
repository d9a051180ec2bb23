"""Random texts: a few words each, of a tokenizer's vocabulary."""

import numpy as np

from finetune.core.errors import CheckpointError
from finetune.data.prepare.texts import TextEncoder

_MOST_WORDS = 4
_SHORTEST_WORD = 3
_FEWEST_WORDS = 100


def list_words(encoder: TextEncoder, name: str) -> list[str]:
    """Returns the words of a tokenizer's vocabulary in alphabetical order: lower-case ASCII, three letters at least.

    Args:
        encoder: Has the tokenizer.
        name: The base's name, for the error.

    Raises:
        CheckpointError: If there are hardly any.
    """
    vocabulary = encoder.tokenizer.get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and word.islower())
    words = [word for word in words if len(word) >= _SHORTEST_WORD]
    if len(words) < _FEWEST_WORDS:
        raise CheckpointError(
            f"Expected the tokenizer of {name} to have words for model.text_preservation, but got {len(words)} in "
            "lower-case letters. Set model.text_preservation to null."
        )
    return words


def draw_texts(words: list[str], count: int) -> list[str]:
    """Draws texts of one to four words, always the same of the same words.

    Args:
        words: The words to draw from.
        count: How many texts.

    Example:
        >>> draw_texts(["and", "tree", "walking"], 3)
        ['walking', 'tree tree', 'and and and']
    """
    random = np.random.default_rng(0)
    chosen = (random.integers(len(words), size=1 + number % _MOST_WORDS) for number in range(count))
    return [" ".join(words[place] for place in places) for places in chosen]
