"""Opens what transformers saved: quietly, with every tensor accounted for, and errors that say what to do."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel

from finetune.core.errors import CheckpointError
from finetune.model.checkpoint_folder import check_reach

Model = TypeVar("Model", bound=PreTrainedModel)


def open_model(kind: type[Model], folder: Path, **options: Any) -> Model:
    """Opens a model in float32 and evaluation mode.

    Args:
        kind: Its class.
        folder: Where it lies.
        options: Arguments of `from_pretrained`; with `state_dict` and `config` no file is read.

    Raises:
        CheckpointError: If it cannot be opened, or its tensors are not exactly those of its configuration.
    """
    source = None if "state_dict" in options else folder
    if source:
        check_reach(source)
    with opening(folder, kind.__name__):
        loaded: Any = kind.from_pretrained(
            source,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
            **options,
        )
    model, report = loaded
    for fault in ("missing", "unexpected", "mismatched"):
        if keys := sorted(map(str, report[f"{fault}_keys"])):
            raise CheckpointError(
                f"Expected the tensors in {folder} to be exactly those of its config.json, but got "
                f"{len(keys)} {fault}, the first: {keys[0]}. Write or download the folder again."
            )
    opened: Model = model.eval()
    return opened


@contextmanager
def opening(folder: Path, kind: str) -> Iterator[None]:
    """Silences transformers while a folder is opened; what it reports of tensors, `open_model` makes an error.

    Args:
        folder: The folder.
        kind: What it is opened as.

    Raises:
        CheckpointError: If that fails.
    """
    try:
        with quiet_transformers():
            yield
    except (KeyError, OSError, RuntimeError, SafetensorError, StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"Expected {folder} to open as an {kind}, but got: {error}. Write or download it again."
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences what transformers says of itself as it reads or writes a model: bars, reports, deprecations."""
    from transformers.utils import logging as untyped_logging

    logging: Any = untyped_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
