from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from finetune.core.types import Batch, Embeddings


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A batch of which only ids and weights matter; ids default to all different, labels to none."""

    def make(
        size: int,
        images: list[int] | None = None,
        captions: list[int] | None = None,
        labels: list[int] | None = None,
        weights: list[float] | None = None,
        targets: list[list[bool]] | None = None,
    ) -> Batch:
        tokens = torch.zeros(size, 2, dtype=torch.int64)
        return Batch(
            pixel_values=torch.zeros(size, 3, 1, 1),
            input_ids=tokens,
            attention_mask=tokens + 1,
            rows=torch.arange(size),
            image_ids=torch.tensor(images if images is not None else range(size)),
            caption_ids=torch.tensor(captions if captions is not None else range(size)),
            label_ids=torch.tensor(labels if labels is not None else [-1] * size),
            weights=torch.tensor(weights if weights is not None else [1.0] * size),
            targets=torch.tensor(targets if targets is not None else [[]] * size, dtype=torch.bool),
        )

    return make


@pytest.fixture
def make_embeddings() -> Callable[..., Embeddings]:
    """Random features that take gradients, of a few very different lengths."""

    def make(size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Embeddings:
        random = torch.Generator().manual_seed(seed)

        def features() -> Tensor:
            values = torch.randn(size, 8, generator=random) * torch.rand(size, 1, generator=random) * 30
            return values.to(dtype).requires_grad_()

        return Embeddings(features(), features(), torch.tensor(0.05).requires_grad_())

    return make
