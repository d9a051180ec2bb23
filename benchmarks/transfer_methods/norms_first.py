"""The norms of both towers first, a classifier of the known classes later (2SFS)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.modules.batchnorm import _BatchNorm
from transfer_data import TaskData, load_base, tokens
from transfer_measure import Trained
from transfer_tasks import Task

from transfer_methods.loop import BATCH_SIZE, train
from transfer_methods.method import Method, Setting

FIRST = 0.6
"""Share of the epochs in which norms are trained, as in the paper."""


class NormsFirst(Method):
    """Trains scales and shifts of all norms with the class prompts, then the classifier alone (2SFS).

    Farina et al. 2025 (CVPR, arXiv 2503.11609). Both stages minimise cross-entropy. The classifier starts as the
    embeddings of the class prompts and answers for the known classes; for others the towers do, with the norms that
    were trained. The paper's model has LayerNorm in both towers; this image tower has BatchNorm, whose statistics stay
    the base's.
    """

    name = "norms-first"
    title = "norms first, classifier later"
    trials = ({"lr": 1e-3}, {"lr": 4e-3}, {"lr": 4e-4})

    def settings(self, task: Task, setting: Setting) -> dict[str, Any]:
        fixed = {"version": 1, "first": FIRST, "batch_size": BATCH_SIZE}
        return {**fixed, "augmentations": task.augmentations, **setting}

    def learn(self, data: TaskData, setting: Setting, seed: int) -> Trained:
        torch.manual_seed(seed)
        model = load_base().requires_grad_(False).eval()
        ids, mask = tokens(list(data.train.classes))

        def embed_images(pixel_values: Tensor) -> Tensor:
            return normalize(model.get_image_features(pixel_values=pixel_values).pooler_output.float(), dim=-1)

        def embed_classes() -> Tensor:
            features = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
            return normalize(features.float(), dim=-1)

        def prompt_loss(pixel_values: Tensor, rows: Tensor) -> Tensor:
            logits = embed_images(pixel_values) @ embed_classes().T / model.temperature
            return cross_entropy(logits, data.train.label_ids[rows])

        norms = [norm for norm in model.modules() if isinstance(norm, nn.LayerNorm | _BatchNorm)]
        trained = [parameter.requires_grad_() for norm in norms for parameter in norm.parameters()]
        first = round(FIRST * data.task.epochs)
        train(trained, prompt_loss, data, setting["lr"], seed, epochs=range(first))
        model.requires_grad_(False)
        with torch.no_grad():
            classifier = nn.Parameter(embed_classes())

        def scores(image_embeds: Tensor) -> Tensor:
            return image_embeds @ normalize(classifier, dim=-1).T / model.temperature

        def classifier_loss(pixel_values: Tensor, rows: Tensor) -> Tensor:
            with torch.no_grad():
                images = embed_images(pixel_values)
            return cross_entropy(scores(images), data.train.label_ids[rows])

        train([classifier], classifier_loss, data, setting["lr"], seed, epochs=range(first, data.task.epochs))
        return Trained(model, lambda features: scores(normalize(features, dim=-1)).detach())
