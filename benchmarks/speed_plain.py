"""Sides that train with transformers and PEFT alone."""

import tempfile
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from speed_data import find_collate, read_plain_rows
from speed_meter import DEVICE, IMAGE_TARGETS, TEXT_TARGETS, StepClock
from speed_side import KEPT, LR, Side, autocast, loop_over, move, pin
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers import Trainer as PlainTrainer


class WithHead(nn.Module):
    """The base's image tower with a linear head, as a script of a user's puts them together."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.config.projection_dim, classes)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns loss and logits as transformers' Trainer expects them."""
        logits = self.head(self.model.get_image_features(pixel_values=pixel_values).pooler_output)
        return {"loss": cross_entropy(logits.float(), labels), "logits": logits}


class PlainSide(Side):
    """A side without anything of the toolkit's in its step."""

    def build_model(self) -> nn.Module:
        """Puts PEFT's adapters into a fresh base, and a head of zeros on it where labels are learned."""
        torch.manual_seed(0)
        is_head = self.job.task == "head"
        targets = [*IMAGE_TARGETS, *([] if is_head else TEXT_TARGETS)]
        adapters = LoraConfig(r=self.job.rank, lora_alpha=2 * self.job.rank, target_modules=targets)
        model = get_peft_model(self.base.load(), adapters)
        if not is_head:
            return model
        with_head = WithHead(model, len(self.data.rows.classes))
        nn.init.zeros_(with_head.head.weight)
        nn.init.zeros_(with_head.head.bias)
        return with_head

    def first_loss(self, model: nn.Module, batch: dict[str, Any]) -> float:
        """The loss of a batch in evaluation mode."""
        model.to(DEVICE).eval()
        with torch.no_grad(), autocast(self.job.computes_in_bf16):
            return float(model(**move(batch))["loss"])


class FrozenStatisticsTrainer(PlainTrainer):
    """Holds BatchNorm in evaluation mode, after the Trainer has put everything in train mode."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return super().compute_loss(model, inputs, *args, **kwargs)


class ClockOfTrainer(TrainerCallback):
    """Tells the clock of the Trainer's steps."""

    def __init__(self, clock: StepClock, rows: int) -> None:
        self.clock = clock
        self.rows = rows

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.clock.start_step(self.rows)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.start_step(0)


class TrainerSide(PlainSide):
    """transformers' Trainer with PEFT."""

    @property
    def is_tuned(self) -> bool:
        """Whether it is more than what a user writes at first."""
        return self.job.side != "trainer"

    def train(self, clock: StepClock) -> float:
        model = self.build_model()
        return self.fit(model, [ClockOfTrainer(clock, self.job.batch_size)], max_steps=self.job.total)

    def fit(self, model: nn.Module, callbacks: list[TrainerCallback], **settings: Any) -> float:
        """Trains a model in the order of its rows, and returns the loss that the first batch had before.

        Args:
            model: As `build_model` returns it.
            callbacks: Follow the training.
            settings: Of `TrainingArguments`, how long to train among them.
        """
        job = self.job
        rows = read_plain_rows(job, self.data)
        collate = find_collate(job, self.base.processor(job.image_size), True if self.is_tuned else "max_length")
        loss = self.first_loss(model, collate([rows[position] for position in range(job.batch_size)]))
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=job.batch_size,
                learning_rate=LR,
                bf16=self.job.computes_in_bf16,
                use_cpu=DEVICE == "cpu",
                dataloader_num_workers=job.workers if self.is_tuned else 0,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                **{"train_sampling_strategy": "sequential", **settings},
            )
            kind = FrozenStatisticsTrainer if self.is_tuned else PlainTrainer
            trainer = kind(model, arguments, train_dataset=rows, data_collator=collate, callbacks=callbacks)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return loss


class BareSide(PlainSide):
    """A loop over batches in memory, with PEFT's adapters; BatchNorm in evaluation mode, no dropout."""

    def train(self, clock: StepClock) -> float:
        job, model = self.job, self.build_model().to(DEVICE).eval()
        rows, collate = read_plain_rows(job, self.data), find_collate(job, self.base.processor(job.image_size))
        starts = range(0, min(len(rows), KEPT * job.batch_size), job.batch_size)
        batches = [pin(collate([rows[start + n] for n in range(job.batch_size)])) for start in starts]
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=LR)
        return loop_over(batches, job, clock, optimizer, lambda batch: model(**batch)["loss"])
