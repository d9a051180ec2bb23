"""The methods that are compared: each learns a task and leaves towers, class scores, or both."""

from collections.abc import Sequence
from dataclasses import replace

from transfer_methods.frozen import LogisticRegressionOnFrozen, TipAdapter, ZeroShot
from transfer_methods.full import FullFineTuning
from transfer_methods.method import Method
from transfer_methods.norms_first import NormsFirst
from transfer_methods.prompts import ClassPromptLora
from transfer_methods.toolkit import Toolkit
from transfer_methods.trainer_peft import TrainerPeft

ONCE = ("--run.soup", "1")
ONCE_SLOWER = (*ONCE, "--model.optimizer.lr", "0.001")
FREE = ("--model.text_preservation", "null")
FREE_IMAGES = ("--model.image_preservation", "null")
NO_SMOOTHING = ("--model.objective.label_smoothing", "0")

RETRIEVAL = Toolkit("retrieval-lora", "ours, retrieval_lora", "retrieval_lora", labels=False)
PROMPTS = Toolkit("classify-prompts", "ours, classify_prompts", "classify_prompts", labels=True)
HEAD = Toolkit("classify-head", "ours, classify_head", "classify_head", labels=True)
FEW_SHOT = Toolkit("few-shot", "ours, few_shot", "few_shot", labels=True, few=True)

METHODS: Sequence[Method] = (
    ZeroShot(),
    LogisticRegressionOnFrozen(),
    TipAdapter(),
    TrainerPeft("naive", "Trainer + PEFT, as it comes", frozen_statistics=False, tuned_like="tuned"),
    TrainerPeft("tuned", "Trainer + PEFT, tuned", frozen_statistics=True),
    FullFineTuning("full", "full fine-tuning", probe_first=False),
    FullFineTuning("lp-ft", "linear probe, then full", probe_first=True),
    ClassPromptLora(),
    NormsFirst(),
    RETRIEVAL,
    replace(RETRIEVAL, name="retrieval-once", title="ours, retrieval_lora once, lr 0.001", words=ONCE_SLOWER),
    replace(
        RETRIEVAL,
        name="retrieval-longer",
        title="ours, retrieval_lora once, twice as long",
        words=ONCE_SLOWER,
        length=2,
    ),
    replace(
        RETRIEVAL,
        name="retrieval-preserving",
        title="ours, retrieval_lora with preservation",
        words=("--model.text_preservation", '{"weight": 10}'),
    ),
    PROMPTS,
    replace(
        PROMPTS,
        name="prompts-frozen",
        title="ours, classify_prompts, text tower frozen",
        words=(*FREE, "--model.text_lora", "null"),
    ),
    replace(
        PROMPTS,
        name="prompts-held",
        title="ours, classify_prompts with five times the preservation",
        words=("--model.text_preservation.weight", "10"),
    ),
    replace(PROMPTS, name="prompts-free", title="ours, classify_prompts without preservation", words=FREE),
    replace(
        PROMPTS,
        name="prompts-once",
        title="ours, classify_prompts once, lr 0.001, no label smoothing or preservation",
        words=(*ONCE_SLOWER, *FREE, "--model.objective", "finetune.Contrastive", *NO_SMOOTHING),
    ),
    HEAD,
    replace(HEAD, name="head-once", title="ours, classify_head once", words=ONCE),
    replace(
        HEAD,
        name="head-preserving",
        title="ours, classify_head with preservation",
        words=("--model.image_preservation", "{}"),
    ),
    FEW_SHOT,
    replace(FEW_SHOT, name="few-free", title="ours, few_shot without preservation", words=FREE_IMAGES),
    replace(
        FEW_SHOT,
        name="few-once",
        title="ours, few_shot once, lr 0.001, no preservation",
        words=(*ONCE_SLOWER, *FREE_IMAGES),
    ),
    replace(
        FEW_SHOT,
        name="few-longer",
        title="ours, few_shot once, twice as long, no preservation",
        words=(*ONCE_SLOWER, *FREE_IMAGES),
        length=2,
    ),
)
