"""Time for memory in the image tower: each block keeps its input alone and computes the rest again in backward."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from transformers.models.align.modeling_align import AlignVisionBlock, AlignVisionModel


def recompute_blocks(vision_model: AlignVisionModel) -> None:
    """Makes each block of the image tower keep its input alone for backward (Chen et al. 2016, arXiv 1604.06174).

    Loss and gradients stay the same: dropout draws the same noise again, autocast is the same, and BatchNorm in
    training mode updates its statistics once. Blocks that need no graph, as those before the first adapter, run as
    before. Modules and parameters keep their names, so adapters may be attached, saved and merged before or after.

    Args:
        vision_model: The image tower; the class of its blocks is changed in place.
    """
    for block in vision_model.encoder.blocks:
        block.__class__ = _RecomputedBlock


class _RecomputedBlock(AlignVisionBlock):
    """A block that computes `forward` again in backward; its hooks, which torch calls around `forward`, run once."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Computes the block, and keeps `hidden_states` alone where something is trained."""
        is_trained = hidden_states.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        if not (is_trained and torch.is_grad_enabled()):
            return super().forward(hidden_states)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _statistics_kept(self)

        output = checkpoint(super().forward, hidden_states, use_reentrant=False, context_fn=contexts)
        return cast(Tensor, output)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Holds BatchNorm's statistics still while a block in training mode is computed for the second time."""
    norms = [norm for norm in block.modules() if isinstance(norm, _BatchNorm) and norm.training]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
