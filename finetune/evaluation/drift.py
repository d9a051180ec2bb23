"""How far an adapted model has moved from its base: a meter of forgetting that needs no second table."""

from torch import Tensor

from finetune.run.measurement import Probe


def drift(before: Probe, after: Probe) -> float:
    """Returns how far an adapted model's scores of the words on the images have moved from its base's.

    With S the cosine similarities of images and words, centred over both, so that what counts is which words are said
    of which images more than of others:

        drift = |S_before - S_after|^2 / (|S_before|^2 + |S_after|^2)

    which is 1 - 2 cov / (var + var), the complement of the concordance coefficient (Lin 1989, Biometrics 45) of centred
    scores. It is 0 where nothing changed; 1 where the model says the same of every image or of every word, as one that
    has collapsed does, or something unrelated; and bounded there. Of a single image there is nothing to say: 0.

    Args:
        before: What the base makes of images and words.
        after: What the adapted model makes of the same.

    Example:
        >>> import torch
        >>> model = Probe(torch.eye(2), torch.eye(2))
        >>> collapsed = Probe(torch.ones(2, 2) / 2**0.5, torch.eye(2))
        >>> drift(model, model), drift(model, collapsed)
        (0.0, 1.0)
    """
    base, adapted = (_centred_scores(each) for each in (before, after))
    size = float(base.square().sum() + adapted.square().sum())
    return min(1.0, float((base - adapted).square().sum()) / size) if size else 0.0


def _centred_scores(seen: Probe) -> Tensor:
    scores = seen.image_embeds.double() @ seen.text_embeds.double().T
    return scores - scores.mean(dim=0) - scores.mean(dim=1, keepdim=True) + scores.mean()
