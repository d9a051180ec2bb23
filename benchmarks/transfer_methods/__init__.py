"""What is compared: each method learns a task and leaves towers, class scores, or both."""

from collections.abc import Sequence

from transfer_methods.frozen import LogisticRegressionOnFrozen, TipAdapter, ZeroShot
from transfer_methods.full import FullFineTuning
from transfer_methods.method import Method
from transfer_methods.prompts import ClassPromptLora
from transfer_methods.toolkit import Toolkit
from transfer_methods.trainer_peft import TrainerPeft

SHARP = ("--model.objective.label_smoothing", "0.0")
EQUAL = ("--model.image_lora.alpha", "32")

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
    Toolkit("retrieval-sharp", "ours, without label smoothing", "retrieval_lora", False, SHARP),
    Toolkit("retrieval-equal", "ours, both towers at one rate", "retrieval_lora", False, EQUAL),
    Toolkit("classify-prompts", "ours, classify_prompts", "classify_prompts", labels=True),
    Toolkit("classify-head", "ours, classify_head", "classify_head", labels=True),
    Toolkit("few-shot", "ours, few_shot", "few_shot", labels=True, few=True),
)
