"""The adapter folder: a standard PEFT folder with the temperature beside it, written and read back."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open

from finetune.core.errors import CheckpointError
from finetune.core.files import read_json, write_json
from finetune.model.base import HUB_ID, Base
from finetune.model.checkpoint_folder import read_object
from finetune.model.lora import ADAPTER
from finetune.model.pretrained import quiet_transformers

TEMPERATURE_FILE = "temperature.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", TEMPERATURE_FILE)
OWN_KEYS = {
    *(
        "base_model_name_or_path",
        "revision",
        "auto_mapping",
        "task_type",
        "peft_type",
        "peft_version",
        "inference_mode",
    ),
    *(
        "r",
        "rank_pattern",
        "lora_alpha",
        "alpha_pattern",
        "lora_dropout",
        "init_lora_weights",
        "use_dora",
        "use_rslora",
    ),
    *("target_modules", "modules_to_save"),
}
"""Keys of `adapter_config.json` that differ between adapters of runs; all others are PEFT's defaults."""


def save_adapter(adapted: PeftModel, folder: Path, base: Base) -> None:
    """Writes a standard PEFT folder and the temperature, which PEFT would lose, as a sidecar.

    Layers trained whole lie in it whole, BatchNorm's running statistics among them. `adapter_config.json` names a base
    of the hub, and none else: PEFT would look for any other name there.

    Args:
        adapted: The model returned by `attach_lora`.
        folder: An existing, empty folder.
        base: The base that was adapted, which the folder names.
    """
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config: dict[str, Any] = read_json(path)
    hub_id = HUB_ID.fullmatch(base.public_name)
    config["base_model_name_or_path"], config["revision"] = hub_id.group("name", "revision") if hub_id else (None, None)
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config[key], list):
            config[key].sort()
    write_json(path, config)
    temperature = adapted.get_base_model().get_parameter("temperature").item()
    write_json(
        folder / TEMPERATURE_FILE,
        {"temperature": temperature, "base_model": base.public_name, "base_model_sha256": base.fingerprint},
    )


def load_adapter(base: Base, folder: Path) -> PeftModel:
    """Puts a saved adapter and its temperature into a fresh model of the base it was trained on.

    Args:
        base: The base.
        folder: A folder written by `save_adapter`.

    Raises:
        CheckpointError: If a file is missing, the base is another one, or the tensors on disk are not exactly
            those the adapter's configuration asks for.
    """
    sidecar = check_adapter(folder)
    if sidecar["base_model_sha256"] != base.fingerprint:
        raise CheckpointError(
            f"Expected the base of {folder} to be {sidecar['base_model']} with SHA-256 "
            f"{sidecar['base_model_sha256']}, but got weights with SHA-256 {base.fingerprint}. "
            "Use the checkpoint the adapter was trained on."
        )
    model = base.load()
    with quiet_transformers():
        adapted = PeftModel(model, LoraConfig.from_pretrained(str(folder), inference_mode=True))
    _check_tensors(adapted, folder / "adapter_model.safetensors")
    adapted.load_adapter(str(folder), ADAPTER, is_trainable=False)
    model.temperature.data.fill_(sidecar["temperature"])
    return adapted


def check_adapter(folder: Path) -> dict[str, Any]:
    """Checks that a folder is that of an adapter which asks for nothing but layers of its own.

    Args:
        folder: The folder.

    Returns:
        The content of `temperature.json`.

    Raises:
        CheckpointError: If a file is missing, or it asks for something else.
    """
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise CheckpointError(f"Expected {folder} to be an adapter folder, but {name} is missing.")
    _check_config(folder / "adapter_config.json")
    return read_object(folder / TEMPERATURE_FILE)


def _check_config(path: Path) -> None:
    """Checks that a configuration is LoRA's and asks for nothing but layers of its own.

    PEFT makes what `peft_type` names, loads tokenizers for some types, and imports the module `megatron_core`.
    """
    config, defaults = read_object(path), LoraConfig().to_dict()
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"Expected peft_type in {path} to be 'LORA', but got {config.get('peft_type')!r}. Pass an adapter of a run."
        )
    home = config.get("base_model_name_or_path")
    if home and not HUB_ID.fullmatch(str(home)):
        raise CheckpointError(
            f"Expected base_model_name_or_path in {path} to be a hub id or null, but got {home!r}. Set it to null: "
            f"{TEMPERATURE_FILE} says which base it is."
        )
    for key, value in config.items():
        if key not in OWN_KEYS and value != defaults.get(key) and value not in (None, False):
            raise CheckpointError(
                f"Expected {path} to ask for nothing but adapters of ALIGN's own layers, but got {key!r}: {value!r}. "
                "Remove the key if you trust the adapter's author."
            )


def _check_tensors(adapted: PeftModel, path: Path) -> None:
    """Compares names and shapes: PEFT loads what fits, and stops with a KeyError at some of what is missing."""
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {name: list(tensor.shape) for name, tensor in tensors.items()}
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
    faults = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "of another shape": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
    }
    for title, names in faults.items():
        if names:
            raise CheckpointError(
                f"Expected {path} to hold the adapter's tensors, but {len(names)} are {title}, among them "
                f"{min(names)}. Write the adapter again from its run."
            )
