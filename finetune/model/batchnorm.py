"""BatchNorm whose running statistics follow the training images, with the momentum that ALIGN was trained with."""

import torch
from torch import Tensor, nn

MOMENTUM = 0.01
"""Weight of a new batch: one minus ALIGN's `batch_norm_momentum` of 0.99, which has Keras' meaning."""


class FollowingBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics follow the training images (Ioffe and Szegedy 2015, arXiv 1502.03167).

    A training step normalises by the statistics of its batch and moves the running ones towards them by `MOMENTUM`.
    Evaluation mode, and any forward pass without gradients, normalises by the running ones and leaves them alone. In
    distributed training the statistics of the first process count. All other BatchNorms of ALIGN stay frozen.

    Args:
        norm: The layer whose weights and statistics to start from; it stays as it is.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        like = norm.weight
        super().__init__(norm.num_features, norm.eps, MOMENTUM, device=like.device, dtype=like.dtype)
        self.load_state_dict(norm.state_dict())

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name is torch's)
        """Normalises a tensor of shape (B, C, H, W)."""
        if self.training and not torch.is_grad_enabled():
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)
