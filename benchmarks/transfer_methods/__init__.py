"""What is compared: each method learns a task and leaves towers, class scores, or both."""

from collections.abc import Sequence

from transfer_methods.frozen import LogisticRegressionOnFrozen, TipAdapter, ZeroShot
from transfer_methods.full import FullFineTuning
from transfer_methods.method import Method
from transfer_methods.prompts import ClassPromptLora
from transfer_methods.toolkit import Toolkit
from transfer_methods.trainer_peft import TrainerPeft

CROP = "[{class_path: albumentations.RandomResizedCrop, init_args: {size: [96, 96], scale: [0.7, 1.0]}}]"
SHARP = ("--model.objective.label_smoothing", "0.0")
EQUAL = ("--model.image_lora.alpha", "32")
LOW_RANK = (
    "--model.image_lora.whole",
    "null",
    "--model.optimizer",
    "torch.optim.AdamW",
    "--model.optimizer.lr",
    "2.5e-3",
)
PROMPTS = ("--model.objective.head_start", "finetune.objectives.FromPrompts", "--model.objective.lr_scale", "5.0")

METHODS: Sequence[Method] = (
    ZeroShot(),
    LogisticRegressionOnFrozen(),
    TipAdapter(),
    TrainerPeft("naive", "Trainer + PEFT, as it comes", frozen_statistics=False, tuned_like="tuned"),
    TrainerPeft("tuned", "Trainer + PEFT, tuned", frozen_statistics=True),
    FullFineTuning("full", "full fine-tuning", probe_first=False),
    FullFineTuning("lp-ft", "linear probe, then full", probe_first=True),
    ClassPromptLora(),
    Toolkit("retrieval-lora", "ours, retrieval_lora", "retrieval_lora", labels=False),
    Toolkit(
        "retrieval-crop", "ours, cropped instead of moved", "retrieval_lora", False, ("--data.augmentations", CROP)
    ),
    Toolkit("retrieval-sharp", "ours, without label smoothing", "retrieval_lora", False, SHARP),
    Toolkit("retrieval-equal", "ours, both towers at one rate", "retrieval_lora", False, EQUAL),
    Toolkit("classify-prompts", "ours, classify_prompts", "classify_prompts", labels=True),
    Toolkit("classify-head", "ours, classify_head", "classify_head", labels=True),
    Toolkit("head-low-rank", "ours, no layer whole, lr 2.5e-3", "classify_head", True, LOW_RANK),
    Toolkit("head-from-prompts", "ours, head started from the prompts", "classify_head", True, PROMPTS),
    Toolkit("head-alone", "ours, head alone", "classify_head", True, ("--model.image_lora", "null")),
)
