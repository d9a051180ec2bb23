from collections.abc import Callable

import pytest
import torch

from finetune.core.types import Batch
from finetune.model.towers import AlignTowers


@pytest.fixture(scope="session")
def train(batch) -> Callable[..., None]:
    """Pulls each image of a batch towards its own text and away from the others, for two steps of Adam."""

    def train_towers(towers: AlignTowers, rows: Batch = batch, learning_rate: float = 3e-3) -> None:
        optimizer = torch.optim.Adam([p for p in towers.parameters() if p.requires_grad], lr=learning_rate)
        for _ in range(2):
            embeddings = towers(rows)
            logits = embeddings.image_embeds @ embeddings.text_embeds.T / embeddings.temperature
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, torch.arange(len(logits))).backward()
            optimizer.step()

    return train_towers


@pytest.fixture(scope="session")
def weights() -> Callable[[torch.nn.Module], dict[str, bytes]]:
    """What a model computes with besides low-rank adapters, under the base's names."""

    def read_weights(model: torch.nn.Module) -> dict[str, bytes]:
        return {
            name.replace(".modules_to_save.default", "").replace(".base_layer", ""): tensor.numpy().tobytes()
            for name, tensor in model.state_dict().items()
            if "lora_" not in name and ".original_module" not in name
        }

    return read_weights
