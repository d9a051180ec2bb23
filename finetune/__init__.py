"""Fine-tune a pretrained ALIGN with LoRA and get back a plain checkpoint that is proven to be the model."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.core.errors import CheckpointError, RecipeError, TableError
    from finetune.core.types import Batch, ClassPrompts, Embeddings
    from finetune.data.loading.datamodule import ImageTextDataModule
    from finetune.data.loading.sampling import ClassBalanced, Sampling, WeightedRows
    from finetune.data.loading.sharded import ShardedImageText
    from finetune.data.table.table import RandomSplit, Table
    from finetune.export.proof import verify
    from finetune.model.base import load_model, load_processor
    from finetune.model.lora import TowerLora
    from finetune.objectives import Classification, Contrastive, Objective, Sigmoid
    from finetune.pipeline.experiment import run_experiment
    from finetune.pipeline.handover import export_run
    from finetune.pipeline.recipe import read_recipe
    from finetune.training.schedules import WarmupCosine
    from finetune.training.task import AlignTask

_HOME = {
    "AlignTask": "training.task",
    "Batch": "core.types",
    "CheckpointError": "core.errors",
    "ClassBalanced": "data.loading.sampling",
    "ClassPrompts": "core.types",
    "Classification": "objectives",
    "Contrastive": "objectives",
    "Embeddings": "core.types",
    "ImageTextDataModule": "data.loading.datamodule",
    "Objective": "objectives",
    "RandomSplit": "data.table.table",
    "RecipeError": "core.errors",
    "Sampling": "data.loading.sampling",
    "ShardedImageText": "data.loading.sharded",
    "Sigmoid": "objectives",
    "Table": "data.table.table",
    "TableError": "core.errors",
    "TowerLora": "model.lora",
    "WarmupCosine": "training.schedules",
    "WeightedRows": "data.loading.sampling",
    "export_run": "pipeline.handover",
    "load_model": "model.base",
    "load_processor": "model.base",
    "read_recipe": "pipeline.recipe",
    "run_experiment": "pipeline.experiment",
    "verify": "export.proof",
}

__version__ = version("align-finetune")
__all__ = [
    "AlignTask",
    "Batch",
    "CheckpointError",
    "ClassBalanced",
    "ClassPrompts",
    "Classification",
    "Contrastive",
    "Embeddings",
    "ImageTextDataModule",
    "Objective",
    "RandomSplit",
    "RecipeError",
    "Sampling",
    "ShardedImageText",
    "Sigmoid",
    "Table",
    "TableError",
    "TowerLora",
    "WarmupCosine",
    "WeightedRows",
    "export_run",
    "load_model",
    "load_processor",
    "read_recipe",
    "run_experiment",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use, so that importing the package does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    return getattr(import_module(f"finetune.{_HOME[name]}"), name)
