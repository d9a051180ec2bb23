"""Cross-entropy over the class prompts with LoRA on both towers, in the manner of CLIP-LoRA."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transfer_data import TaskData, load_base, tokens
from transfer_measure import Trained
from transfer_tasks import Task

from transfer_methods.loop import BATCH_SIZE, train
from transfer_methods.method import Method, Setting
from transfer_methods.trainer_peft import TARGETS


class ClassPromptLora(Method):
    """Compares each image with the texts of all classes (Zanella and Ben Ayed 2024, arXiv 2405.18541).

    Theirs has rank 2 in the attention layers of both towers and 500 steps a shot. Here layers, rank and epochs are
    those of the other methods, so that only the loss differs.
    """

    name = "clip-lora"
    title = "cross-entropy over class prompts, LoRA"
    trials = ({"lr": 1e-3}, {"lr": 2.5e-3}, {"lr": 4e-4})

    def settings(self, task: Task, setting: Setting) -> dict[str, Any]:
        fixed = {"version": 1, "rank": 16, "alpha": 32, "targets": TARGETS, "batch_size": BATCH_SIZE}
        return {**fixed, "augmentations": task.augmentations, **setting}

    def learn(self, data: TaskData, setting: Setting, seed: int) -> Trained:
        torch.manual_seed(seed)
        model = load_base()
        adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS)).eval()
        ids, mask = tokens(list(data.train.classes))

        def loss(pixel_values: Tensor, rows: Tensor) -> Tensor:
            images = model.get_image_features(pixel_values=pixel_values).pooler_output
            classes = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
            logits = normalize(images.float(), dim=-1) @ normalize(classes.float(), dim=-1).T / model.temperature
            return cross_entropy(logits, data.train.label_ids[rows])

        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        train(trained, loss, data, setting["lr"], seed)
        return Trained(model)
