"""What goes wrong in training is reported with its repair, and a healthy run is left in peace."""

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import seed_everything
from PIL import Image
from torch.optim import AdamW

from finetune.core.errors import RecipeError
from finetune.core.types import Batch, Embeddings
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.model.lora import TowerLora
from finetune.objectives import Contrastive, Sigmoid
from finetune.training.classification_task import ClassificationTask
from finetune.training.collapse import CollapseWatch, chance_loss, find_loss_concern
from finetune.training.preservation import TextPreservation
from finetune.training.task import AlignTask

SMALL = TowerLora(rank=2)
BOTH = {"image_lora": SMALL, "text_lora": SMALL}


@pytest.fixture
def watched(build_trainer, tiny):
    """Trains a task and returns what was reported, and what was logged last."""

    def fit(data, epochs=2, kind=AlignTask, adapters=BOTH, validate=True, **settings):
        seed_everything(0, verbose=False)
        watch = CollapseWatch()
        trainer = build_trainer(max_epochs=epochs, callbacks=[watch], limit_val_batches=1.0 if validate else 0)
        task = kind(tiny, **adapters, **settings)
        trainer.fit(task, data)
        return {notice.about: notice.message for notice in watch.notices}, trainer.callback_metrics, task

    return fit


def captions_of(folder: Path, tiny: str, images: list[np.ndarray], labels: bool = False) -> ImageTextDataModule:
    """A table of images with a caption, or an equal label, each; every third row is for validation."""
    lines = ["image,text,split"]
    for index, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{index}.png")
        text = "thing" if labels else f"thing number {index}"
        lines.append(f"{index}.png,{text},{('train', 'train', 'val')[index % 3]}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    column = {"label" if labels else "caption": "text"}
    return ImageTextDataModule(Table(str(folder / "table.csv"), split="split", **column), tiny, batch_size=8)


def noise(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 24, 24, 3), dtype=np.uint8))


def test_healthy_run_has_no_notice_and_logs_what_the_embeddings_are(watched, labels, capsys):
    notices, logged, task = watched(labels, epochs=3)
    assert notices == {}
    assert "warning" not in capsys.readouterr().err
    with torch.no_grad():
        embeddings = [task(batch) for batch in labels.val_dataloader()]
    images = torch.cat([part.image_embeds for part in embeddings]).double().numpy()
    cosines = images @ images.T
    assert float(logged["val/image_spread"]) == pytest.approx(1 - cosines[~np.eye(9, dtype=bool)].mean(), abs=1e-5)
    shares = np.linalg.svd(images, compute_uv=False)
    shares /= shares.sum()
    assert float(logged["val/image_effective_rank"]) == pytest.approx(np.exp(-shares @ np.log(shares)), rel=1e-4)
    assert 1 < float(logged["val/text_effective_rank"]) <= 3  # three class names
    assert float(logged["train/duplicate_positives"]) > 0.5
    assert float(logged["train/image_gradient_norm"]) > 0
    assert float(logged["train/text_gradient_norm"]) > 0


def test_what_preservation_adds_is_not_taken_for_a_loss_at_chance(watched, labels):
    notices, logged, task = watched(labels, epochs=3, text_preservation=TextPreservation(weight=1e4))
    assert float(logged["train/text_distance"]) * 1e4 == pytest.approx(float(task.preservation))
    assert float(task.preservation) > math.log(8)  # so the sum is larger than the loss at chance
    assert notices == {}


def test_a_step_that_forgets_preservation_is_reported(watched, labels):
    class Own(AlignTask):
        def training_step(self, batch, batch_idx):
            return self.loss(self(batch), batch)

    notices, _, _ = watched(labels, kind=Own, text_preservation=TextPreservation())
    assert "training_step of Own does not add self.preservation_loss(batch)" in notices["preservation_forgotten"]
    notices, _, _ = watched(labels, kind=Own)
    assert notices == {}


def test_equal_images_are_a_collapse_and_leave_the_loss_at_chance(watched, tmp_path, tiny, capsys):
    notices, logged, _ = watched(captions_of(tmp_path, tiny, noise(1) * 24))
    assert set(notices) == {"image_collapse", "loss_at_chance"}
    assert "effective rank 1.0 of 8, mean cosine 1.00. Lower the learning rate" in notices["image_collapse"]
    assert float(logged["val/image_spread"]) == pytest.approx(0, abs=1e-6)
    assert float(logged["train/duplicate_positives"]) == 0
    assert f"{math.log(8):.3f} where all similarities are equal" in notices["loss_at_chance"]
    screen = capsys.readouterr().err
    assert all(screen.count(f"warning: {message}") == 1 for message in notices.values())


def test_a_learning_rate_far_too_high_is_reported(watched, tmp_path, tiny):
    notices, _, _ = watched(captions_of(tmp_path, tiny, noise(24)), optimizer=partial(AdamW, lr=10.0))
    assert "8 of 8 image features are 0 or not finite: training has diverged" in notices["image_diverged"]
    assert "loss_at_chance" in notices


def test_one_label_leaves_nothing_to_tell_apart(watched, tmp_path, tiny):
    notices, logged, _ = watched(captions_of(tmp_path, tiny, noise(24), labels=True))
    assert set(notices) == {"no_negatives"}
    assert "The table needs more than one label or caption." in notices["no_negatives"]
    assert float(logged["train/duplicate_positives"]) == 1


@pytest.mark.parametrize("labels", [True, False])
def test_batches_of_a_single_row_do_not_blame_the_table(watched, tmp_path, tiny, labels):
    data = captions_of(tmp_path, tiny, noise(6), labels)
    data.batch_size = 1
    notices, _, _ = watched(data, epochs=1)
    assert notices["no_negatives"].endswith("Raise data.batch_size.")
    assert "table" not in notices["no_negatives"]
    with pytest.raises(RecipeError, match=r"data\.batch_size to be at least 2, but got 1"):
        AlignTask.require_learnable(data)


@pytest.mark.parametrize(
    ("steps", "first"), [(2, "trainer.max_epochs"), (12, "trainer.max_epochs"), (100, "optimizer")]
)
def test_a_training_of_few_steps_is_not_blamed_on_the_learning_rate_first(steps, first):
    concern = find_loss_concern(0.9, 0.7, rows=12, steps=steps)
    assert concern is not None
    advice = concern.message.partition("equal. ")[2]
    assert re.search(r"trainer\.max_epochs|optimizer", advice)[0] == first
    assert ("lower data.batch_size" in advice) == (steps < 100)


def test_temperature_at_its_bound_is_reported(watched, labels):
    notices, _, task = watched(labels, min_temperature=1.0)
    assert task.towers.temperature.item() == 1
    assert set(notices) == {"temperature_at_bound"}
    assert "bound, 1. Set model.train_temperature to false" in notices["temperature_at_bound"]
    frozen, _, _ = watched(labels, min_temperature=1.0, train_temperature=False)
    assert frozen == {}


class DeafTask(AlignTask):
    """Loses the gradient of its texts on the way."""

    def forward(self, batch: Batch) -> Embeddings:
        embeddings = super().forward(batch)
        silent = embeddings.text_features.detach() + 0 * embeddings.text_features
        return embeddings._replace(text_features=silent)


def test_a_tower_without_gradient_is_reported(watched, labels):
    notices, _, _ = watched(labels, kind=DeafTask)
    assert set(notices) == {"text_gradient_zero"}
    assert "model.text_lora.layers" in notices["text_gradient_zero"]


class BrokenTask(AlignTask):
    """Divides by zero."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * math.nan


def test_loss_that_is_no_number_is_reported(watched, labels):
    notices, _, _ = watched(labels, epochs=1, kind=BrokenTask, validate=False)
    assert "The loss is nan: training has diverged. Lower the learning rate" in notices["loss_not_finite"]


class MuteTask(AlignTask):
    """Returns no text features from a validation step."""

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        return {"image_features": super().validation_step(batch, batch_idx)["image_features"]}


def test_a_step_without_text_features_is_watched_by_its_images(watched, labels):
    notices, logged, _ = watched(labels, kind=MuteTask)
    assert notices == {}
    assert "val/image_spread" in logged
    assert "val/text_spread" not in logged


def test_head_is_watched_without_texts(watched, labels):
    notices, logged, _ = watched(labels, kind=ClassificationTask, adapters={"image_lora": SMALL})
    assert notices == {}
    assert "val/image_spread" in logged
    assert "val/text_spread" not in logged
    assert "train/text_gradient_norm" not in logged


@pytest.mark.parametrize("objective", [Contrastive(), Contrastive(label_smoothing=0.1), Sigmoid()])
def test_chance_is_the_loss_at_equal_similarities(tiny, batch, objective):
    task = AlignTask(tiny, None, None, objective=objective)
    alike = batch._replace(caption_ids=torch.tensor([0, 0, 0, 1, 2, 3]))
    same = torch.ones(6, 64)
    found = chance_loss(task, alike).item()
    assert found == pytest.approx(objective(Embeddings(same, -same, torch.tensor(1e9)), alike).item())
    if isinstance(objective, Contrastive):
        copies = np.array([3, 3, 3, 1, 1, 1])  # with a positive's copies in the place of the others: ln(6 / copies)
        assert found == pytest.approx(np.log(6 / copies).mean())


def test_chance_of_a_head_is_that_of_its_bias(tiny, labels, build_trainer):
    task = ClassificationTask(tiny, SMALL)
    build_trainer(max_steps=1).fit(task, labels)
    batch = next(iter(labels.train_dataloader()))
    shares = task.head.bias.detach().softmax(dim=0).numpy()
    assert chance_loss(task, batch).item() == pytest.approx(-np.log(shares[batch.label_ids]).mean(), rel=1e-5)
