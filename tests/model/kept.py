"""What a forward pass of the image tower keeps for backward."""

import torch
from torch.autograd.graph import saved_tensors_hooks

from finetune.model.towers import AlignTowers


def saved_bytes(towers: AlignTowers, pixel_values) -> int:
    """Bytes of what one forward pass keeps for backward, weights aside."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in towers.state_dict().values()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = towers.image_features(pixel_values).sum()
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())
