"""What a checkpoint's folder has to hold, and may not ask for, before anything is loaded from it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.core.errors import CheckpointError
from finetune.core.files import read_json

# Keys of a config.json that make transformers fetch code, read other files or change the layers.
REFUSED_KEYS = {"auto_map", "fusion_config", "quantization_config", "transformers_weights"}
# Keys of a processor's files that name code or other files.
REFUSED_OF_PROCESSORS = {"auto_map", "tokenizer_file", "vocab_file", "merges_file"}
PROCESSOR_FILES = tuple(
    f"{name}.json" for name in ("processor_config", "preprocessor_config", "tokenizer_config", "special_tokens_map")
)
LARGEST_NUMBER = 100_000_000  # of anything that a configuration counts: beyond the words of any language
MOST_LAYERS = 1_000


def check_folder(folder: Path) -> None:
    """Checks that a folder holds an ALIGN that can be opened, whole and by itself.

    Args:
        folder: The folder.

    Raises:
        CheckpointError: If it is incomplete, an adapter or no ALIGN, or asks for something from outside.
    """
    _check_files(folder)
    _check_kind(folder)
    check_reach(folder)


def check_reach(folder: Path) -> None:
    """Checks that a model's folder asks for no code, no other layers and no file from outside the folder.

    Args:
        folder: The folder of a model of transformers.

    Raises:
        CheckpointError: If it does.
    """
    _check_config(folder)
    check_processor(folder)
    _check_weights(folder)


def check_processor(folder: Path) -> None:
    """Checks that the files of a processor ask for no code and no file from outside the folder.

    Args:
        folder: A folder that a processor was saved into.

    Raises:
        CheckpointError: If one does, or is no JSON object.
    """
    for path in (folder / name for name in PROCESSOR_FILES if (folder / name).is_file()):
        for key, value in _flatten(read_object(path)):
            if key in REFUSED_OF_PROCESSORS and value:
                raise CheckpointError(
                    f"Expected {path} to describe a processor of transformers and files of its own folder, but got "
                    f"{key!r}: {value!r}. Remove the key if you trust the folder's author."
                )


def _check_files(folder: Path) -> None:
    """Checks that the folder holds each file that model and processor are opened from, and no adapter."""
    if (folder / "adapter_config.json").is_file():
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"Expected {folder} to be a whole checkpoint, but got an adapter. "
                "Merge it into its base first: finetune export RUN --output DIR"
            )
        raise CheckpointError(
            f"Expected {folder} to hold a model alone, but got adapter_config.json beside it, which would be "
            "applied to the model again on loading. Move the adapter's files out of the folder."
        )
    for names, repair in (
        (("config.json",), "Pass a folder written by AlignModel.save_pretrained."),
        (
            ("model.safetensors", "model.safetensors.index.json"),
            "If its weights are pickled (pytorch_model.bin), convert them with AlignModel.save_pretrained.",
        ),
        (("tokenizer.json", "vocab.txt"), "Save its AlignProcessor into the folder, too."),
        (
            ("preprocessor_config.json", "processor_config.json"),
            "Save its AlignProcessor into the folder, too.",
        ),
    ):
        if not any((folder / name).is_file() for name in names):
            raise CheckpointError(f"Expected {folder} to hold {' or '.join(names)}, but got none. {repair}")


def _check_kind(folder: Path) -> None:
    """Checks that config.json is ALIGN's."""
    path = folder / "config.json"
    config = read_object(path)
    if config.get("model_type") != "align":
        raise CheckpointError(
            f"Expected model_type in {path} to be 'align', but got {config.get('model_type')!r}. "
            "Pass an AlignModel's folder."
        )


def _check_config(folder: Path) -> None:
    """Checks that config.json asks for nothing from outside the folder."""
    path = folder / "config.json"
    for key, value in _flatten(read_object(path)):
        attention = "attn_implementation" in key and value not in (None, "eager") and not isinstance(value, bool)
        if attention or (key in REFUSED_KEYS and value is not None):
            raise CheckpointError(
                f"Expected {path} to ask for nothing but ALIGN's own layers, but got {key!r}: {value!r}. "
                "Remove the key if you trust the folder's author."
            )
        largest = MOST_LAYERS if key == "num_hidden_layers" else LARGEST_NUMBER
        if isinstance(value, int | float) and value > largest:
            raise CheckpointError(
                f"Expected the numbers in {path} to be those of an ALIGN, but got {key!r}: {value!r}, more than "
                f"{largest:,}. Write or download the folder again."
            )


def _check_weights(folder: Path) -> None:
    """Checks that a weight index names files of this folder, all of them there."""
    path = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not path.is_file():
        return
    shards = read_object(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"Expected {path} to hold a weight_map, but got none. Write or download it again.")
    for shard in sorted(set(map(str, shards.values()))):
        if not re.fullmatch(r"model[\w.-]*\.safetensors", shard):
            raise CheckpointError(
                f"Expected {path} to name files of its own folder, model*.safetensors, but got {shard!r}. "
                "Do not use this folder unless you know why."
            )
        if not (folder / shard).is_file():
            raise CheckpointError(f"Expected {folder} to hold {shard}, but got none. Download the folder again.")


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it holds something else.
    """
    try:
        value = read_json(path)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"Expected {path} to be a JSON object, but got: {error}. Write it again.") from error
    return value


def _flatten(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield key, value
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from _flatten(inner)
