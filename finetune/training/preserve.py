"""Keeps the text tower near the base on texts that no table holds."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from finetune.core.errors import CheckpointError
from finetune.core.types import Texts
from finetune.data.prepare.texts import TextEncoder
from finetune.inference.embed import embed_text_features
from finetune.model.base import Base
from finetune.model.towers import AlignTowers

_POOL = 1024
"""Texts that are drawn once; a step takes the next few of them, and then the first again."""

_MOST_WORDS = 4
_SHORTEST_WORD = 3
_FEWEST_WORDS = 100


@dataclass(frozen=True)
class TextPreservation:
    """Holds the text tower to what the base makes of random texts, so that learning a table's texts forgets no others.

    Each step embeds some texts beside those of the batch, and adds to its loss

        weight * mean over these texts of (1 - cosine(text_features, the base's text_features))

    It is distillation of features on reference data (ZSCL, Zheng et al. 2023, arXiv 2303.06628; after LwF, Li and Hoiem
    2016, arXiv 1606.09282) without the data: a text is one to four words, drawn from the tokenizer's vocabulary. The
    base embeds them once, at the first step.

    Args:
        weight: How much a distance counts in the loss, of which 1 is a right angle.
        texts: How many texts a step embeds.

    Raises:
        ValueError: If a number is out of its range.
    """

    weight: float = 10.0
    texts: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(
                f"Expected weight to be positive and finite, but got {self.weight}. To preserve nothing, set "
                "model.preserve to null."
            )
        if not 1 <= self.texts <= _POOL:
            raise ValueError(f"Expected texts to be in [1, {_POOL}], but got {self.texts}.")


class PreservedTexts:
    """Random texts, and what a base makes of them, which is asked once, when a distance is.

    Args:
        base: The base.

    Raises:
        CheckpointError: If the base's tokenizer has no vocabulary of words.
    """

    def __init__(self, base: Base) -> None:
        encoder = TextEncoder.from_processor(base.processor())
        encoded = encoder.pad(encoder.encode_all(draw_texts(list_words(encoder, base.name))))
        self._texts = Texts(*map(torch.from_numpy, encoded))
        self._base = base
        self._features: Tensor | None = None

    def distance(self, towers: AlignTowers, count: int, step: int) -> Tensor:
        """Returns how far the text tower has moved on some of the texts, a scalar in [0, 2].

        Args:
            towers: The towers.
            count: How many texts.
            step: The number of the step, from 0, which says which texts.
        """
        device = towers.temperature.device
        if self._features is None:
            base = AlignTowers(self._base.load()).to(device)
            self._features = embed_text_features(base, self._texts, device).to(device)
        chosen = (torch.arange(count) + step * count) % len(self._features)
        mask = self._texts.attention_mask[chosen]
        kept = mask.any(dim=0)  # no further than the longest of these texts, on whichever side the padding is
        features = towers.text_features(self._texts.input_ids[chosen][:, kept].to(device), mask[:, kept].to(device))
        return (1 - cosine_similarity(features.float(), self._features[chosen.to(device)])).mean()


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
            f"Expected the tokenizer of {name} to have words for model.preserve, but got {len(words)} in lower-case "
            "letters. Set model.preserve to null."
        )
    return words


def draw_texts(words: list[str]) -> list[str]:
    """Draws texts of one to four words, always the same of the same words.

    Args:
        words: The words to draw from.

    Example:
        >>> draw_texts(["and", "tree", "walking"])[:3]
        ['walking', 'tree tree', 'and and and']
    """
    random = np.random.default_rng(0)
    chosen = (random.integers(len(words), size=1 + number % _MOST_WORDS) for number in range(_POOL))
    return [" ".join(words[place] for place in places) for places in chosen]
