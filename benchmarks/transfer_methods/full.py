"""Full fine-tuning, and full fine-tuning after a linear probe (LP-FT)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transfer_data import TaskData, load_base, tokens
from transfer_measure import Trained, base_image_features
from transfer_tasks import Task
from transformers import AlignModel

from transfer_methods.frozen import fit_logistic_regression
from transfer_methods.loop import BATCH_SIZE, train
from transfer_methods.method import Method, Setting


class FullFineTuning(Method):
    """Trains all weights, with BatchNorm's statistics held at the base's.

    On captions the loss is InfoNCE, and the temperature is trained. On labels it is cross-entropy of a linear head on
    the image features. The head is drawn at random, or with `probe_first` it starts as a logistic regression on the
    frozen features (Kumar et al. 2022, arXiv 2202.10054).

    Args:
        name: Name in the results.
        title: Name in the tables.
        probe_first: Whether the head is fitted first.
    """

    trials = ({"lr": 1e-4}, {"lr": 3e-4}, {"lr": 3e-5})

    def __init__(self, name: str, title: str, probe_first: bool) -> None:
        self.name = name
        self.title = title
        self.probe_first = probe_first

    def handles(self, task: Task) -> bool:
        return task.home.label is not None or not self.probe_first

    def settings(self, task: Task, setting: Setting) -> dict[str, Any]:
        return {"version": 1, "batch_size": BATCH_SIZE, "augmentations": task.augmentations, **setting}

    def learn(self, data: TaskData, setting: Setting, seed: int) -> Trained:
        torch.manual_seed(seed)
        model = load_base().eval()
        if not data.train.classes:
            train(model.parameters(), lambda *batch: _contrastive_loss(model, data, *batch), data, setting["lr"], seed)
            return Trained(model)
        head = torch.nn.Linear(model.config.projection_dim, len(data.train.classes))
        if self.probe_first:
            self._probe(head, data)

        def loss(pixel_values: Tensor, rows: Tensor) -> Tensor:
            features = model.get_image_features(pixel_values=pixel_values).pooler_output
            return cross_entropy(head(features).float(), data.train.label_ids[rows])

        trained = [*model.vision_model.parameters(), *head.parameters()]
        train(trained, loss, data, setting["lr"], seed)
        return Trained(model, head)

    @staticmethod
    @torch.no_grad()
    def _probe(head: torch.nn.Linear, data: TaskData) -> None:
        features = base_image_features(data.train).clone()
        scale = features.norm(dim=-1).mean()
        weight, bias = fit_logistic_regression(features / scale, data.train.label_ids, head.out_features, 100.0)
        head.weight.copy_(weight / scale)
        head.bias.copy_(bias.clamp_min(-10.0))  # of a class without rows, which training would have to move


def _contrastive_loss(model: AlignModel, data: TaskData, pixel_values: Tensor, rows: Tensor) -> Tensor:
    ids, mask = tokens([data.train.texts[row] for row in rows.tolist()])
    images = model.get_image_features(pixel_values=pixel_values).pooler_output
    texts = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    logits = normalize(images.float(), dim=-1) @ normalize(texts.float(), dim=-1).T / model.temperature
    target = torch.arange(len(rows))
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
