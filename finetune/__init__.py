"""Fine-tune a pretrained ALIGN with LoRA and get back a plain checkpoint that is proven to be the model."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.batch import Batch, ClassPrompts, Embeddings
    from finetune.checkpoint import load_model, load_processor
    from finetune.data.datamodule import ImageTextDataModule
    from finetune.data.sampling import ClassBalanced, Sampling, WeightedRows
    from finetune.data.sharded import ShardedImageText
    from finetune.data.table import RandomSplit, Table
    from finetune.errors import CheckpointError, RecipeError, TableError
    from finetune.experiment import run_experiment
    from finetune.handover import export_run
    from finetune.objectives import Classification, Contrastive, Objective, Sigmoid
    from finetune.proof import verify
    from finetune.recipe import read_recipe
    from finetune.schedules import WarmupCosine
    from finetune.task import AlignTask
    from finetune.towers.lora import TowerLora

_HOME = {
    "AlignTask": "task",
    "Batch": "batch",
    "CheckpointError": "errors",
    "ClassBalanced": "data.sampling",
    "ClassPrompts": "batch",
    "Classification": "objectives",
    "Contrastive": "objectives",
    "Embeddings": "batch",
    "ImageTextDataModule": "data.datamodule",
    "Objective": "objectives",
    "RandomSplit": "data.table",
    "RecipeError": "errors",
    "Sampling": "data.sampling",
    "ShardedImageText": "data.sharded",
    "Sigmoid": "objectives",
    "Table": "data.table",
    "TableError": "errors",
    "TowerLora": "towers.lora",
    "WarmupCosine": "schedules",
    "WeightedRows": "data.sampling",
    "export_run": "handover",
    "load_model": "checkpoint",
    "load_processor": "checkpoint",
    "read_recipe": "recipe",
    "run_experiment": "experiment",
    "verify": "proof",
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
