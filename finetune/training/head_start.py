"""What a classification head is before it is trained: the class prompts, or a probe of the training rows."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from finetune.training.discriminant import best_factor, discriminant, one_against_rest


class Seen(NamedTuple):
    """Training rows as the untouched image tower sees them.

    Attributes:
        image_features: Float tensor of shape (N, D), not normalised.
        truth: Label ids of shape (N,), or bool targets of shape (N, C) where an image may have several labels.
        weights: Float tensor of shape (N,), the rows' weights in the loss.
    """

    image_features: Tensor
    truth: Tensor
    weights: Tensor


class HeadStart(ABC):
    """Makes the weight and the bias that a head starts with.

    Attributes:
        rows: After how many training rows no more are shown, each counted as often as it is shown.
        views: How often each of them is shown at most, augmented in another way each time.
    """

    rows: int
    views: int

    @abstractmethod
    def __call__(self, class_embeds: Tensor, temperature: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """Returns a weight of shape (C, D) and a bias of shape (C,) for features that are not normalised.

        Args:
            class_embeds: Float tensor of shape (C, D), normalised, see `finetune.inference.embed.embed_classes`.
            temperature: Scalar tensor that divides the cosine similarities.
            seen: The training rows.
        """


class FromPrompts(HeadStart):
    """Starts from the class prompts, so that each image's classes are ranked as zero-shot ranks them.

    With the class embeddings c, the temperature T and the mean norm r of the image features, weight = c / (r T) and
    bias = 0: the logits are the zero-shot ones times |f| / r (Wortsman et al. 2022, arXiv 2109.01903).

    Args:
        rows: From how many training rows the mean norm is taken. It scales the logits and changes no ranking.

    Raises:
        ValueError: If `rows` is below 1.
    """

    views = 1

    def __init__(self, rows: int = 256) -> None:
        self.rows = _at_least_one("rows", rows)

    def __call__(self, class_embeds: Tensor, temperature: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """Returns the class prompts as a head; see `HeadStart`."""
        norm = seen.image_features.float().norm(dim=-1).mean()
        weight = class_embeds.float() / (norm * temperature.float())
        return weight, weight.new_zeros(len(weight))


class FromProbe(HeadStart):
    """Starts from a probe of the training rows in closed form, which is good from one row a class on.

    The probe is linear discriminant analysis with a shrunk covariance, see `finetune.training.discriminant`. Wang et
    al. 2024 (arXiv 2402.04087) show how far that goes on the features of a vision-language model. With more features
    than rows the probe is far too sure of these rows, and a loss of zero teaches nothing. So its logits are multiplied
    by the number that suits the rows best if a share of their labels were spread evenly (label smoothing): the probe
    then gives about 1 less that share to the right classes.

    Args:
        views: How often each training row is shown at most, augmented in another way each time.
        rows: After how many rows no more are shown, each counted as often as it is shown.
        shrinkage: How many rows that vary in every direction alike the covariance is mixed with.
        smoothing: The share of the labels that is spread evenly, in (0, 1).

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(self, views: int = 10, rows: int = 4096, shrinkage: float = 30.0, smoothing: float = 0.1) -> None:
        if not 0 < shrinkage < float("inf"):
            raise ValueError(f"Expected shrinkage to be positive and finite, but got {shrinkage}.")
        if not 0 < smoothing < 1:
            raise ValueError(f"Expected smoothing to be in (0, 1), but got {smoothing}.")
        self.views = _at_least_one("views", views)
        self.rows = _at_least_one("rows", rows)
        self.shrinkage = shrinkage
        self.smoothing = smoothing

    def __call__(self, class_embeds: Tensor, temperature: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Returns the probe; see `HeadStart`. Neither prompts nor temperature are read."""
        features, truth, weights = seen
        weights = weights.double() / weights.double().mean()  # their scale counts for nothing, as in the loss
        weights = weights.nan_to_num(1.0)  # all of those seen were 0
        if truth.ndim == 2:
            weight, bias = one_against_rest(features, truth, weights, self.shrinkage)
        else:
            weight, bias = discriminant(features, truth, weights, len(class_embeds), self.shrinkage)
        factor = best_factor(features.double() @ weight.T + bias, truth, weights, self.smoothing)
        return (factor * weight).float(), (factor * bias).float()


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"Expected {name} to be at least 1, but got {value}.")
    return value
