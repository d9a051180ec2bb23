"""BatchNorm statistics: held unless asked for, and then following the training images alone, at momentum 0.01."""

import copy
import pickle

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from finetune.model.base import Base
from finetune.model.batchnorm import FollowingBatchNorm2d
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.towers import AlignTowers


def build(checkpoint, **arguments) -> AlignTowers:
    return AlignTowers(attach_lora(Base.open(checkpoint).load(), TowerLora(rank=2, **arguments), None), True, 0.01)


def following(towers) -> dict[str, FollowingBatchNorm2d]:
    return {name: norm for name, norm in towers.named_modules() if isinstance(norm, FollowingBatchNorm2d)}


def statistics(towers) -> dict[str, bytes]:
    return {name: buffer.numpy().tobytes() for name, buffer in towers.named_buffers()}


def test_running_statistics_are_those_computed_by_hand(tiny, batch):
    towers = build(tiny, train_statistics=True)
    norms = following(towers)
    expected = {
        name: [norm.running_mean.double().numpy(), norm.running_var.double().numpy()] for name, norm in norms.items()
    }
    seen: dict[str, np.ndarray] = {}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].detach().numpy()}))
    for step in range(3):
        towers.image_features(batch.pixel_values * (step + 1))
        for name, (mean, variance) in expected.items():
            values = seen[name].astype(np.float64)
            expected[name] = [
                0.99 * mean + 0.01 * values.mean(axis=(0, 2, 3)),
                0.99 * variance + 0.01 * values.var(axis=(0, 2, 3), ddof=1),
            ]
    assert len(norms) == sum(isinstance(m, torch.nn.BatchNorm2d) for m in Base.open(tiny).load().modules())
    for name, (mean, variance) in expected.items():
        scale = np.sqrt(variance).max()
        np.testing.assert_allclose(norms[name].running_mean.numpy(), mean, atol=1e-5 * scale, rtol=1e-5)
        np.testing.assert_allclose(norms[name].running_var.numpy(), variance, rtol=1e-4)


def test_training_normalises_by_the_batch_and_evaluation_by_what_was_learnt(tiny):
    norm = FollowingBatchNorm2d(Base.open(tiny).load().vision_model.embeddings.batchnorm)
    images = 3 * torch.randn(8, norm.num_features, 5, 5) + 7
    values = images.numpy()
    weight, bias = norm.weight.detach().numpy()[:, None, None], norm.bias.detach().numpy()[:, None, None]

    def normalised(mean, variance):
        return (values - mean.reshape(-1, 1, 1)) / np.sqrt(variance.reshape(-1, 1, 1) + norm.eps) * weight + bias

    by_batch = normalised(values.mean(axis=(0, 2, 3)), values.var(axis=(0, 2, 3)))
    np.testing.assert_allclose(norm(images).detach().numpy(), by_batch, atol=1e-4)
    learnt = normalised(norm.running_mean.numpy(), norm.running_var.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(norm(images).numpy(), learnt, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.eval()(images).detach().numpy(), learnt, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["eval", "no_grad", "inference_mode", "stray train without gradients"])
def test_evaluation_leaves_the_statistics_alone(tiny, batch, way):
    towers = build(tiny, train_statistics=True)
    towers.image_features(batch.pixel_values)
    before = statistics(towers)
    if way == "eval":
        towers.eval()
        towers.image_features(batch.pixel_values)
    elif way == "inference_mode":
        with torch.inference_mode():
            towers.image_features(batch.pixel_values)
    else:
        with torch.no_grad():
            (towers.align if "stray" in way else towers).train()
            towers.image_features(batch.pixel_values)
    assert statistics(towers) == before


def test_layers_out_of_reach_of_last_blocks_are_held_under_a_stray_train(tiny, batch):
    towers = build(tiny, train_statistics=True, last_blocks=1)
    before = statistics(towers)
    towers.align.train()
    towers.image_features(batch.pixel_values)
    after = statistics(towers)
    changed = {name.rpartition(".")[0] for name in before if before[name] != after[name]}
    assert changed == set(following(towers))
    last = len(Base.open(tiny).load().vision_model.encoder.blocks) - 1
    assert all(f"vision_model.encoder.blocks.{last}." in name for name in changed)


@pytest.mark.parametrize("whole", [["norm"], ["all"]])
def test_statistics_of_whole_layers_are_held_unless_asked_for(tiny, train, whole):
    towers = build(tiny, whole=whole)
    before = statistics(towers)
    train(towers.train())
    assert statistics(towers) == before


@pytest.mark.parametrize("through", [copy.deepcopy, lambda towers: pickle.loads(pickle.dumps(towers))])
def test_copies_follow_on_their_own(tiny, batch, through):
    towers = build(tiny, train_statistics=True)
    before = statistics(towers)
    other = through(towers)
    other.image_features(batch.pixel_values)
    assert statistics(towers) == before
    assert statistics(other) != before


class Module(lightning.LightningModule):
    def __init__(self, towers):
        super().__init__()
        self.towers = towers

    def training_step(self, batch, _):
        return self.towers(batch).image_embeds.std() / self.towers.temperature

    def validation_step(self, batch, _):
        self.towers(batch)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def test_lightning_counts_training_batches_alone(tiny, batch, tmp_path):
    towers = build(tiny, train_statistics=True)
    before = {name: norm.num_batches_tracked.item() for name, norm in following(towers).items()}
    loader = DataLoader([batch] * 3, batch_size=None)
    trainer = lightning.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(towers), loader, loader)
    found = {name: norm.num_batches_tracked.item() - before[name] for name, norm in following(towers).items()}
    assert set(found.values()) == {6}
