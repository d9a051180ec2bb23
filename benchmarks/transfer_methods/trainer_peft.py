"""transformers' Trainer with PEFT, as a user would write it: as it comes, and tuned.

As it comes, everything is in train mode and texts are padded to the processor's 64 tokens. Tuned, BatchNorm is held in
evaluation mode, texts are padded to the longest of the batch, and autocast is bfloat16. Both use the model's own loss,
`return_loss=True`, which smooths labels by 0.1 and takes every other row of the batch for a negative.
"""

import tempfile
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transfer_data import Pictures, TaskData, load_base, processor, tokens
from transfer_measure import Trained
from transfer_tasks import Task
from transformers import PrinterCallback, Trainer, TrainingArguments

from transfer_methods.method import Method, Setting

TARGETS = ["query", "key", "value", "dense", "text_projection", "expand_conv", "project_conv"]
BATCH_SIZE = 64


class PositionDataset(Dataset[int]):
    """Positions of rows; the collator looks the rows up."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> int:
        return position


class FrozenStatisticsTrainer(Trainer):
    """Holds BatchNorm in evaluation mode, after the Trainer has put everything in train mode."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        return super().compute_loss(model, inputs, *args, **kwargs)


class TrainerPeft(Method):
    """LoRA on both towers with Trainer and PEFT.

    Args:
        name: Name in the results.
        title: Name in the tables.
        frozen_statistics: Whether it is the tuned one.
        tuned_like: Method whose choice of the learning rate is taken over.
    """

    trials = ({"lr": 1e-3}, {"lr": 2.5e-3}, {"lr": 4e-4})

    def __init__(self, name: str, title: str, frozen_statistics: bool, tuned_like: str | None = None) -> None:
        self.name = name
        self.title = title
        self.is_tuned = frozen_statistics
        self.tuned_like = tuned_like

    def handles(self, task: Task) -> bool:
        return True

    def settings(self, task: Task, setting: Setting) -> dict[str, Any]:
        return {"version": 1, "rank": 16, "alpha": 32, "targets": TARGETS, "batch_size": BATCH_SIZE, **setting}

    def learn(self, data: TaskData, setting: Setting, seed: int) -> Trained:
        torch.manual_seed(seed)
        model = load_base()
        adapters = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS)
        adapted = get_peft_model(model, adapters)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=data.task.epochs,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=setting["lr"],
                lr_scheduler_type="cosine" if self.is_tuned else "linear",
                warmup_steps=0.1 if self.is_tuned else 0,
                bf16=self.is_tuned,
                use_cpu=True,
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            trainer = (FrozenStatisticsTrainer if self.is_tuned else Trainer)(
                adapted,
                arguments,
                train_dataset=PositionDataset(len(data.train)),
                data_collator=lambda rows: self._collate(data.train, rows),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return Trained(model)

    def _collate(self, pictures: Pictures, rows: list[int]) -> dict[str, Any]:
        texts = [pictures.texts[row] for row in rows]
        if self.is_tuned:
            ids, mask = tokens(texts)
        else:
            padded = processor(pictures.image_size)(text=texts, truncation=True, max_length=64, return_tensors="pt")
            ids, mask = padded["input_ids"], padded["attention_mask"]
        pixel_values = pictures.pixel_values(pictures.pixels[np.array(rows)])
        return {"pixel_values": pixel_values, "input_ids": ids, "attention_mask": mask, "return_loss": True}
