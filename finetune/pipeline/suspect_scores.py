"""Scores say how badly the text of a row fits its image, beside the texts and images of the other rows."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 0.5
"""Weight of either kind of neighbours, where the similarity itself has the weight 1."""

SHARPNESS = 3.0
"""Logits per standard deviation, of similarities and of the evidence."""

ROUNDS = 50
"""How often rows and columns are scaled."""

_LEAST_OTHERS = 0.05  # where one row takes nearly all of the weight, the rest is noise


class Similarities(NamedTuple):
    """Cosine similarities among N rows.

    Attributes:
        pairs: Of the image of row i and the text of row j, shape (N, N).
        images: Of the images of rows i and j, shape (N, N).
        texts: Of the texts of rows i and j, shape (N, N).
    """

    pairs: Tensor
    images: Tensor
    texts: Tensor


class Suspicion(NamedTuple):
    """How suspect N rows are.

    Attributes:
        scores: How badly each fits, float64 of shape (N,).
        better: Which row's text, or which class, fits better; -1 where none does; int64 of shape (N,).
    """

    scores: Tensor
    better: Tensor


def compare_rows(models: Sequence[tuple[Tensor, Tensor]], fold_ids: Tensor) -> Similarities:
    """Returns the similarities of rows; each row is seen by the model that was not trained on it.

    Two models see a pair of rows of two folds: the similarity of image i and text j is the mean of what the model of
    row i and the model of row j make of it. The model of row i compares images with images, and texts with texts.

    Args:
        models: For each fold's model, the unit image and text embeddings of all N rows, shape (N, D) each.
        fold_ids: The fold of each row, int64 of shape (N,): a position in `models`.
    """
    count = len(fold_ids)
    by_image, by_text, images, texts = torch.empty(4, count, count)
    for fold, (image_embeds, text_embeds) in enumerate(models):
        own = fold_ids == fold
        by_image[own] = image_embeds[own] @ text_embeds.T
        by_text[own] = text_embeds[own] @ image_embeds.T
        images[own] = image_embeds[own] @ image_embeds.T
        texts[own] = text_embeds[own] @ text_embeds.T
    return Similarities((by_image + by_text.T) / 2, images, texts)


def match_probabilities(similarities: Similarities) -> Tensor:
    """Returns how likely each text is each image's, float64 of shape (N, N); rows and columns add up to 1.

    Three kinds of evidence are added, each standardised: the similarity of image i and text j; that of text j to the
    texts of the rows whose images are near image i; and that of image i to the images of the rows whose texts are near
    text j. Nearness is a softmax over the rows other than i and j, of standardised similarities, so that a model's
    temperature does not matter. The exponentials of the sum are then scaled until rows and columns add up to 1, the
    rows nearly (Sinkhorn 1967, "Diagonal equivalence to matrices with prescribed row and column sums"): a text that is
    taken by its own image is no rival. So a row that fits badly, but whose image and text nobody else asks for, is hard
    rather than wrong.

    Args:
        similarities: Of N rows.
    """
    pairs, images, texts = similarities
    near_images = _around(images, texts)
    near_texts = _around(texts, images).T
    evidence = _standardised(pairs) + NEIGHBOURS * (_standardised(near_images) + _standardised(near_texts))
    kernel = (SHARPNESS * (evidence - evidence.max())).double().exp()
    columns = torch.ones_like(kernel[0])
    for _ in range(ROUNDS):
        rows = 1 / (kernel @ columns)
        columns = 1 / (rows @ kernel)
    return rows[:, None] * kernel * columns


def score_captions(similarities: Similarities, image_ids: Tensor, text_ids: Tensor) -> Suspicion:
    """Scores each row by -log of the probability that its image has its text; see `match_probabilities`.

    An image or a text of several rows may match in any of them: the probability is the sum over the rows of the image
    and the rows of the text.

    Args:
        similarities: Of N rows.
        image_ids: Equal for rows of the same image, int64 of shape (N,).
        text_ids: Equal for rows of the same text, int64 of shape (N,).
    """
    same_image, same_text = ((ids[:, None] == ids).double() for ids in (image_ids, text_ids))
    likely = same_image @ match_probabilities(similarities) @ same_text
    own = likely.diagonal()
    is_given = same_image @ same_text > 0
    best = likely.masked_fill(is_given, 0.0).max(dim=1)
    return Suspicion(-own.clamp_min(torch.finfo(own.dtype).tiny).log(), best.indices.where(best.values > own, -1))


def score_labels(class_scores: Tensor, label_ids: Tensor) -> Suspicion:
    """Scores each row by how much more confident its image is in another class than in its label.

    With p the softmax of the scores and t[c] the mean of p[c] over the rows labelled c, the confidence in c is
    p[c] - t[c]; so the score does not suspect all rows of a class that the model is seldom sure of. t is the threshold
    of confident learning (Northcutt et al. 2021, arXiv 1911.00068). A class that no row has is no alternative.

    Args:
        class_scores: Logits of the classes for the N images, shape (N, C), by a model that never saw them.
        label_ids: Int64 tensor of shape (N,), in [0, C).
    """
    probabilities = class_scores.double().softmax(dim=1)
    own = probabilities.gather(1, label_ids[:, None])[:, 0]
    counts = torch.bincount(label_ids, minlength=probabilities.shape[1])
    thresholds = torch.zeros_like(probabilities[0]).index_add(0, label_ids, own) / counts.clamp_min(1)
    confidence = (probabilities - thresholds).masked_fill(counts == 0, -torch.inf)
    own = confidence.gather(1, label_ids[:, None])[:, 0]
    best = confidence.scatter(1, label_ids[:, None], -torch.inf).max(dim=1)
    return Suspicion(best.values - own, best.indices.where(best.values > own, -1))


def _around(near: Tensor, alike: Tensor) -> Tensor:
    """Returns the mean of alike[k, j] over the rows k near row i, shape (N, N); neither i nor j is one of them."""
    weights = (SHARPNESS * _standardised(near)).fill_diagonal_(-torch.inf).softmax(dim=1)
    return (weights @ alike - weights * alike.diagonal()) / (1 - weights).clamp_min(_LEAST_OTHERS)


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std().clamp_min(1e-6)
