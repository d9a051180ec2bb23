"""Fine-tune a pretrained ALIGN with LoRA and get back a plain checkpoint that is proven to be the model."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.core.errors import CheckpointError, HubError, RecipeError, TableError
    from finetune.core.interpolation import Interpolation
    from finetune.core.shipped import prepare
    from finetune.core.types import Batch, ClassPrompts, Embeddings
    from finetune.data.loading.datamodule import ImageTextDataModule
    from finetune.data.loading.sampling import ClassBalanced, Sampling, WeightedRows
    from finetune.data.table.splits import RandomSplit
    from finetune.data.table.table import Table
    from finetune.evaluation.evaluate import evaluate
    from finetune.export.artifacts import verify
    from finetune.export.publish import publish
    from finetune.inference.classify import classify
    from finetune.inference.make_vectors import embed, embed_images, embed_texts
    from finetune.inference.search import search
    from finetune.inference.vector_folder import read_vectors
    from finetune.model.base import Base
    from finetune.model.head import LinearHead
    from finetune.model.lora import TowerLora
    from finetune.objectives import Contrastive, CrossEntropy, Objective, Sigmoid
    from finetune.pipeline.check import check
    from finetune.pipeline.compare import compare_models
    from finetune.pipeline.doctor import doctor
    from finetune.pipeline.export_run import export_run
    from finetune.pipeline.measure_again import measure_checkpoint, measure_run
    from finetune.pipeline.recipe import read_recipe
    from finetune.pipeline.run_recipe import resume_run, run_recipe
    from finetune.pipeline.suspects import find_suspects
    from finetune.report.page import write_report
    from finetune.training.classification_task import ClassificationTask
    from finetune.training.head_start import FromProbe, FromPrompts
    from finetune.training.preservation import ImagePreservation, TextPreservation
    from finetune.training.schedules import WarmupCosine
    from finetune.training.task import AlignTask

_HOME = {
    "AlignTask": "training.task",
    "Base": "model.base",
    "Batch": "core.types",
    "CheckpointError": "core.errors",
    "ClassBalanced": "data.loading.sampling",
    "ClassPrompts": "core.types",
    "ClassificationTask": "training.classification_task",
    "Contrastive": "objectives",
    "CrossEntropy": "objectives",
    "Embeddings": "core.types",
    "FromProbe": "training.head_start",
    "FromPrompts": "training.head_start",
    "HubError": "core.errors",
    "ImagePreservation": "training.preservation",
    "ImageTextDataModule": "data.loading.datamodule",
    "Interpolation": "core.interpolation",
    "LinearHead": "model.head",
    "Objective": "objectives",
    "RandomSplit": "data.table.splits",
    "RecipeError": "core.errors",
    "Sampling": "data.loading.sampling",
    "Sigmoid": "objectives",
    "Table": "data.table.table",
    "TableError": "core.errors",
    "TextPreservation": "training.preservation",
    "TowerLora": "model.lora",
    "WarmupCosine": "training.schedules",
    "WeightedRows": "data.loading.sampling",
    "check": "pipeline.check",
    "classify": "inference.classify",
    "compare_models": "pipeline.compare",
    "doctor": "pipeline.doctor",
    "embed": "inference.make_vectors",
    "embed_images": "inference.make_vectors",
    "embed_texts": "inference.make_vectors",
    "evaluate": "evaluation.evaluate",
    "export_run": "pipeline.export_run",
    "find_suspects": "pipeline.suspects",
    "measure_checkpoint": "pipeline.measure_again",
    "measure_run": "pipeline.measure_again",
    "prepare": "core.shipped",
    "publish": "export.publish",
    "read_recipe": "pipeline.recipe",
    "read_vectors": "inference.vector_folder",
    "resume_run": "pipeline.run_recipe",
    "run_recipe": "pipeline.run_recipe",
    "search": "inference.search",
    "verify": "export.artifacts",
    "write_report": "report.page",
}
_RENAMED = {
    "Classification": "ClassificationTask, and CrossEntropy for its loss",
    "ShardedImageText": "ImageTextDataModule: a table's path may name tars",
    "load_model": "Base.open(checkpoint).load()",
    "load_processor": "Base.open(checkpoint).processor(image_size)",
    "run_experiment": "run_recipe",
}

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # at its import it asks the network for its newest version

__all__ = [
    "AlignTask",
    "Base",
    "Batch",
    "CheckpointError",
    "ClassBalanced",
    "ClassPrompts",
    "ClassificationTask",
    "Contrastive",
    "CrossEntropy",
    "Embeddings",
    "FromProbe",
    "FromPrompts",
    "HubError",
    "ImagePreservation",
    "ImageTextDataModule",
    "Interpolation",
    "LinearHead",
    "Objective",
    "RandomSplit",
    "RecipeError",
    "Sampling",
    "Sigmoid",
    "Table",
    "TableError",
    "TextPreservation",
    "TowerLora",
    "WarmupCosine",
    "WeightedRows",
    "check",
    "classify",
    "compare_models",
    "doctor",
    "embed",
    "embed_images",
    "embed_texts",
    "evaluate",
    "export_run",
    "find_suspects",
    "measure_checkpoint",
    "measure_run",
    "prepare",
    "publish",
    "read_recipe",
    "read_vectors",
    "resume_run",
    "run_recipe",
    "search",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Finds a public name at its first use, so that importing the package does not wait for torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("align-finetune")
    if name in _RENAMED:
        raise AttributeError(f"finetune.{name} is now finetune.{_RENAMED[name]}")
    if name not in _HOME:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    return getattr(import_module(f"finetune.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Lists the public names too, which are no globals before their first use: for `dir` and tab completion."""
    return sorted({*globals(), *__all__, "__version__"})
