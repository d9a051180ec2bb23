"""An adapted model as a plain `AlignModel` folder that carries its proof."""

import json
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AlignModel, AlignProcessor

from finetune.checkpoint import load_model, open_processor, resolve_checkpoint
from finetune.errors import CheckpointError
from finetune.files import fingerprint_file, fingerprint_weights, read_json, write_folder, write_json
from finetune.proof import PROOF_FILE, WITNESS_FILE, prove
from finetune.results import write_model_card
from finetune.run_folder import open_run
from finetune.towers.adapter import TEMPERATURE_FILE, save_adapter
from finetune.towers.align import AlignTowers
from finetune.towers.merge import merge_adapter

_TOWERS = {"image": ("vision_model.",), "text": ("text_model.", "text_projection.")}


def export_run(run: str | Path, output: Path, overwrite: bool = False) -> dict[str, Any]:
    """Merges and proves the adapter of a finished run once more, into a folder of the user's choice.

    Args:
        run: The run's folder.
        output: The folder to write.
        overwrite: Whether an existing `output` is replaced.

    Returns:
        The content of `merge_proof.json`.

    Raises:
        RecipeError: If there is no such run.
        FileExistsError: If `output` exists and `overwrite` is false.
        CheckpointError: If the run is not finished, or as `export_merged`.
    """
    folder = open_run(run)
    if not folder.is_finished:
        raise CheckpointError(f"Expected {folder.path} to be finished, but it has no finished.json. Run it again.")
    if not folder.adapter.is_dir():
        raise CheckpointError(
            f"Expected {folder.path} to have an adapter to merge, but it trained a head alone. Its classifier is "
            f"whole as it lies in {folder.classifier}: copy that folder."
        )
    checkpoint = read_json(folder.adapter / TEMPERATURE_FILE)["base_model"]
    proof = export_merged(checkpoint, folder.adapter, folder.witness, output, overwrite)
    write_model_card(output, folder.path.name, read_json(folder.metrics), proof)
    return proof


def write_adapter(
    towers: AlignTowers, processor: AlignProcessor, folder: Path, checkpoint: str, fingerprint: str
) -> None:
    """Writes an adapter with its processor: a folder that plain peft and transformers open.

    Args:
        towers: The adapted model.
        processor: The processor it was trained with.
        folder: The folder to write.
        checkpoint: Portable name of the base.
        fingerprint: SHA-256 of the base's weights.
    """
    with write_folder(folder) as staging:
        assert isinstance(towers.model, PeftModel)
        save_adapter(towers.model, staging, checkpoint, fingerprint)
        write_processor(processor, staging)


def export_merged(
    checkpoint: str, adapter: Path, witness: Path, output: Path, overwrite: bool = False
) -> dict[str, Any]:
    """Merges an adapter into its base and writes the result, once it is proven.

    Args:
        checkpoint: The base: hub id, local folder, or `align-mini`.
        adapter: PEFT folder with temperature and processor, as a run writes it.
        witness: The adapted model's embeddings of held-back inputs.
        output: The folder to write: `model.safetensors`, `config.json`, processor and tokenizer,
            `merge_proof.json` and the witness.
        overwrite: Whether an existing `output` is replaced.

    Returns:
        The content of `merge_proof.json`; `identical_to_base` says of either tower whether all its tensors are the
        base's byte for byte, so that an index built with the base stays valid.

    Raises:
        FileExistsError: If `output` exists and `overwrite` is false.
        CheckpointError: If the base, the adapter or the proof does not hold. No folder is left then.
    """
    with write_folder(output, overwrite) as staging:
        base = resolve_checkpoint(checkpoint)
        fingerprint = fingerprint_weights(base)
        model = merge_adapter(load_model(checkpoint), adapter, fingerprint)
        write_checkpoint(model, open_processor(adapter), staging)
        shutil.copyfile(witness, staging / WITNESS_FILE)
        proof = prove(staging, staging / WITNESS_FILE)
        proof["base_model"] = checkpoint
        proof["identical_to_base"] = {
            tower: fingerprint_weights(staging, prefixes) == fingerprint_weights(base, prefixes)
            for tower, prefixes in _TOWERS.items()
        }
        proof["sha256"]["base_model"] = fingerprint
        proof["sha256"]["adapter"] = fingerprint_file(adapter / "adapter_model.safetensors")
        write_json(staging / PROOF_FILE, proof)
    return proof


def write_checkpoint(model: AlignModel, processor: AlignProcessor, folder: Path) -> None:
    """Writes model and processor so that transformers 4 and 5 open them.

    Args:
        model: The merged model.
        processor: Its processor.
        folder: An existing, empty folder.
    """
    model.save_pretrained(folder, safe_serialization=True)
    write_processor(processor, folder)


def write_processor(processor: AlignProcessor, folder: Path) -> None:
    """Writes a processor: nested as transformers 5 reads it, and `preprocessor_config.json` for version 4.

    Args:
        processor: Image processor and tokenizer.
        folder: An existing folder.
    """
    processor.save_pretrained(folder)
    legacy = json.loads(processor.image_processor.to_json_string())
    write_json(folder / "preprocessor_config.json", legacy)
