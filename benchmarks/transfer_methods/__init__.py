"""What is compared: each method learns a task and leaves towers, class scores, or both."""

from collections.abc import Sequence

from transfer_methods.frozen import LogisticRegressionOnFrozen, TipAdapter, ZeroShot
from transfer_methods.full import FullFineTuning
from transfer_methods.method import Method
from transfer_methods.prompts import ClassPromptLora
from transfer_methods.toolkit import Toolkit
from transfer_methods.trainer_peft import TrainerPeft

ONCE = ("--run.soup", "1")
ONCE_SLOWER = (*ONCE, "--model.optimizer.lr", "0.001")

METHODS: Sequence[Method] = (
    ZeroShot(),
    LogisticRegressionOnFrozen(),
    TipAdapter(),
    TrainerPeft("naive", "Trainer + PEFT, as it comes", frozen_statistics=False, tuned_like="tuned"),
    TrainerPeft("tuned", "Trainer + PEFT, tuned", frozen_statistics=True),
    FullFineTuning("full", "full fine-tuning", probe_first=False),
    FullFineTuning("lp-ft", "linear probe, then full", probe_first=True),
    ClassPromptLora(),
    Toolkit("retrieval-lora", "ours, retrieval_lora", "retrieval_lora"),
    Toolkit("retrieval-once", "ours, retrieval_lora once, lr 0.001", "retrieval_lora", ONCE_SLOWER),
    Toolkit("retrieval-longer", "ours, retrieval_lora once, twice as long", "retrieval_lora", ONCE_SLOWER, length=2),
    Toolkit("classify-prompts", "ours, classify_prompts", "classify_prompts"),
    Toolkit("classify-head", "ours, classify_head", "classify_head"),
    Toolkit("head-once", "ours, classify_head once", "classify_head", ONCE),
    Toolkit("head-longer", "ours, classify_head once, twice as long", "classify_head", ONCE, length=2),
    Toolkit("few-shot", "ours, few_shot", "few_shot"),
    Toolkit("few-once", "ours, few_shot once, lr 0.001", "few_shot", ONCE_SLOWER),
    Toolkit("few-longer", "ours, few_shot once, twice as long", "few_shot", ONCE_SLOWER, length=2),
)
