"""From the name of a checkpoint (`align-mini`, a folder or a hub id) to a checked model and processor."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.core.errors import CheckpointError, RecipeError, did_you_mean
from finetune.model.checkpoint_folder import check_folder
from finetune.model.mini import MINI, mini_folder

if TYPE_CHECKING:
    from transformers import AlignModel, AlignProcessor

HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
# What is downloaded of a hub id; adapter_config.json is among it, so that an adapter is recognised as one.
MODEL_FILES = ["config.json", "*_config.json", "model*.safetensors", "model.safetensors.index.json"]
PROCESSOR_FILES = ["tokenizer.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json"]
SMALLEST_IMAGE = 32  # pixels; the image tower halves the side five times


def resolve_checkpoint(checkpoint: str) -> Path:
    """Finds a checkpoint's folder and checks that it holds an ALIGN, before anything is loaded from it.

    Args:
        checkpoint: `align-mini`; a folder written by `AlignModel` and `AlignProcessor`; or a hub id,
            `owner/name` or `owner/name@revision`, which is downloaded into the hub's own cache.

    Raises:
        CheckpointError: If there is no such checkpoint, or its folder is incomplete, an adapter or no ALIGN.
    """
    if checkpoint == MINI:
        return mini_folder()
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        folder = _download(checkpoint)
    check_folder(folder)
    return folder


def portable_name(checkpoint: str) -> str:
    """The name under which another working directory finds the same checkpoint.

    Args:
        checkpoint: As in `resolve_checkpoint`. `align-mini` and hub ids stay as they are, a folder becomes its
            absolute path.
    """
    folder = Path(checkpoint).expanduser()
    return str(folder.resolve()) if checkpoint != MINI and folder.is_dir() else checkpoint


def load_model(checkpoint: str) -> "AlignModel":
    """Loads an ALIGN in float32 and evaluation mode, with every tensor accounted for.

    Args:
        checkpoint: As in `resolve_checkpoint`.

    Raises:
        CheckpointError: If the checkpoint cannot be resolved, or its tensors are not exactly the model's.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AlignModel

    folder = resolve_checkpoint(checkpoint)
    try:
        with _quiet_transformers():
            loaded: Any = AlignModel.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below
                output_loading_info=True,
            )
    except (OSError, RuntimeError, SafetensorError, StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"Expected {folder} to open as an AlignModel, but got: {error}. Write or download it again."
        ) from error
    model, report = loaded
    for fault in ("missing", "unexpected", "mismatched"):
        if keys := sorted(map(str, report[f"{fault}_keys"])):
            raise CheckpointError(
                f"Expected the tensors in {folder} to be exactly those of its config.json, but got "
                f"{len(keys)} {fault}, the first: {keys[0]}. Write or download the folder again."
            )
    aligned: AlignModel = model.eval()
    return aligned


def load_processor(checkpoint: str, image_size: int | None = None) -> "AlignProcessor":
    """Loads the checkpoint's own processor, pinned to Pillow, at its own or another image size.

    Args:
        checkpoint: As in `resolve_checkpoint`.
        image_size: Side in pixels of the images that the model receives. The size to which images are resized
            before they are cropped follows in proportion. None keeps the checkpoint's own.

    Raises:
        CheckpointError: If the checkpoint cannot be resolved or its processor not be opened.
        RecipeError: If `image_size` is too small for the image tower.
    """
    if image_size is not None and image_size < SMALLEST_IMAGE:
        raise RecipeError(f"Expected image_size to be at least {SMALLEST_IMAGE} pixels, but got {image_size}.")
    processor = open_processor(resolve_checkpoint(checkpoint))
    if image_size is not None:
        _rescale(processor.image_processor, image_size)
    return processor


def open_processor(folder: Path) -> "AlignProcessor":
    """Opens the processor of a checkpoint's or adapter's folder, pinned to Pillow, as it is to be written again.

    Args:
        folder: A folder that a processor was saved into.

    Raises:
        CheckpointError: If there is none or it cannot be opened.
    """
    from transformers import AlignProcessor

    try:
        with _quiet_transformers():
            processor: AlignProcessor = AlignProcessor.from_pretrained(
                folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"Expected {folder} to open as an AlignProcessor, but got: {error}. Write or download it again."
        ) from error
    for key in ("backend", "is_local", "local_files_only"):  # how it was opened here, else saved with it
        processor.tokenizer.init_kwargs.pop(key, None)
    return processor


def _rescale(image_processor: Any, image_size: int) -> None:
    received = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    factor = image_size / min(dict(received).values())
    for name in ("size", "crop_size"):
        if sides := getattr(image_processor, name):
            rescaled = {side: round(pixels * factor) for side, pixels in dict(sides).items()}
            setattr(image_processor, name, type(sides)(**rescaled))


def _download(checkpoint: str) -> Path:
    """Downloads the needed files of a hub id into the hub's cache, or says what the user may have meant."""
    from huggingface_hub import snapshot_download

    beside = [str(path.parent) for path in Path(checkpoint).expanduser().parent.glob("*/config.json")]
    hub_id = HUB_ID.fullmatch(checkpoint)
    if hub_id is None:
        raise CheckpointError(
            f"Expected the checkpoint to be {MINI}, a folder or a hub id (owner/name), "
            f"but got {checkpoint!r}, which is no folder. {did_you_mean(checkpoint, [MINI, *beside])}"
        )
    try:
        patterns = MODEL_FILES + PROCESSOR_FILES
        return Path(snapshot_download(hub_id["name"], revision=hub_id["revision"], allow_patterns=patterns))
    except Exception as error:  # the hub's client lets those of its transport through
        raise CheckpointError(
            f"Expected {checkpoint!r} to be a folder or to be found on the model hub, but got: {error} "
            f"Without access to the hub, download it elsewhere and pass the folder, or use {MINI}. "
            f"{did_you_mean(checkpoint, beside) if beside else ''}".rstrip()
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silences progress bars and the loading report, which `load_model` turns into an error."""
    from transformers.utils import logging as untyped_logging

    logging: Any = untyped_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
