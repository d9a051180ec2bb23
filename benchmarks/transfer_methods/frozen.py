"""Methods that leave the towers as they are: zero-shot, logistic regression, Tip-Adapter-F."""

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot
from transfer_data import TaskData
from transfer_measure import Trained, base_class_embeds, base_image_features
from transfer_tasks import Task

from transfer_methods.method import Method, Setting

TEMPERATURE = 0.05  # align-mini's


class ZeroShot(Method):
    """The untouched base."""

    name = "zero-shot"
    title = "zero-shot"

    def seeds(self, task: Task) -> int:
        return 1

    def handles(self, task: Task) -> bool:
        return True

    def settings(self, task: Task, setting: Setting) -> dict[str, Any]:
        return {"version": 1}

    def learn(self, data: TaskData, setting: Setting, seed: int) -> Trained:
        return Trained(None)


def fit_logistic_regression(
    features: Tensor, label_ids: Tensor, classes: int, strength: float
) -> tuple[Tensor, Tensor]:
    """Fits weights (C, D) and biases (C,) in float32; a class without rows has the bias -1e9.

    Args:
        features: Float tensor of shape (N, D).
        label_ids: Int64 tensor of shape (N,).
        classes: C.
        strength: scikit-learn's C, the inverse of the penalty.
    """
    fitted = LogisticRegression(C=strength, max_iter=2000).fit(features.numpy(), label_ids.numpy())
    weight = np.zeros((classes, features.shape[1]), dtype=np.float32)
    bias = np.full(classes, -1e9, dtype=np.float32)
    weight[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
    return torch.from_numpy(weight), torch.from_numpy(bias)


class LogisticRegressionOnFrozen(Method):
    """Logistic regression on the normalised image embeddings."""

    name = "logistic-regression"
    title = "logistic regression on frozen embeddings"
    trials = ({"C": 100.0}, {"C": 1000.0}, {"C": 10.0})

    def seeds(self, task: Task) -> int:
        return task.seeds if task.shots else 1

    def settings(self, task: Task, setting: Setting) -> dict[str, Any]:
        return {"version": 1, **setting}

    def learn(self, data: TaskData, setting: Setting, seed: int) -> Trained:
        embeds = normalize(base_image_features(data.train), dim=-1)
        weight, bias = fit_logistic_regression(embeds, data.train.label_ids, len(data.train.classes), setting["C"])
        return Trained(None, lambda features: normalize(features, dim=-1) @ weight.T + bias)


class TipAdapter(Method):
    """Tip-Adapter-F: a cache of the training rows beside the class prompts, its keys trained.

    Zhang et al. 2021 (arXiv 2111.03930): logits = f W^T / temperature + alpha exp(-beta (1 - f K^T)) V. The keys K
    start as the training embeddings, the values V are their labels. AdamW, 20 epochs, lr 1e-3, cosine, beta 5.5.
    """

    name = "tip-adapter-f"
    title = "Tip-Adapter-F"
    trials = ({"alpha": 1.0}, {"alpha": 10.0}, {"alpha": 3.0})

    def settings(self, task: Task, setting: Setting) -> dict[str, Any]:
        return {"version": 1, "beta": 5.5, "lr": 1e-3, "epochs": 20, "batch_size": 256, **setting}

    def learn(self, data: TaskData, setting: Setting, seed: int) -> Trained:
        fixed = self.settings(data.task, setting)
        embeds = normalize(base_image_features(data.train), dim=-1)
        class_embeds = base_class_embeds(data.train)
        values = one_hot(data.train.label_ids, len(class_embeds)).float()
        keys = torch.nn.Parameter(embeds.clone())

        def scores(features: Tensor) -> Tensor:
            images = normalize(features, dim=-1)
            affinity = (-fixed["beta"] * (1 - images @ keys.T)).exp()
            return images @ class_embeds.T / TEMPERATURE + fixed["alpha"] * affinity @ values

        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW([keys], lr=fixed["lr"], eps=1e-4)
        steps = fixed["epochs"] * -(-len(embeds) // fixed["batch_size"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(fixed["epochs"]):
            for rows in torch.randperm(len(embeds), generator=generator).split(fixed["batch_size"]):
                loss = cross_entropy(scores(embeds[rows]), data.train.label_ids[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return Trained(None, scores)
