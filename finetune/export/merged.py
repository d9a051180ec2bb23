"""An adapted model as a plain `AlignModel` folder that carries its proof."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import AlignModel, AlignProcessor

from finetune.core.files import fingerprint_file, fingerprint_weights, write_folder, write_json
from finetune.export.proof import PROOF_FILE, WITNESS_FILE, check_towers, prove, record
from finetune.model.adapter import save_adapter
from finetune.model.base import load_model, open_processor, resolve_checkpoint
from finetune.model.interpolate import interpolate
from finetune.model.merge import merge_adapter
from finetune.model.towers import AlignTowers

_TOWERS = {"image": ("vision_model.",), "text": ("text_model.", "text_projection.")}


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
    checkpoint: str,
    adapter: Path,
    witness: Path,
    output: Path,
    overwrite: bool = False,
    alpha: float = 1.0,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Merges an adapter into its base and writes the result, or a point between the two, once it is proven.

    Away from alpha 1 and the adapter's temperature, the merge first has to reproduce the witness in this process; the
    point's own answers to the same inputs then are the folder's witness.

    Args:
        checkpoint: The base: hub id, local folder, or `align-mini`.
        adapter: PEFT folder with temperature and processor, as a run writes it.
        witness: The adapted model's embeddings of held-back inputs.
        output: The folder to write: `model.safetensors`, `config.json`, processor and tokenizer,
            `merge_proof.json` and the witness.
        overwrite: Whether an existing `output` is replaced.
        alpha: 1 writes the merge, 0 the base, a number between them their weighted mean, see
            `finetune.model.interpolate.interpolate`.
        temperature: What divides the similarities in place of the interpolated temperature.

    Returns:
        The content of `merge_proof.json`; `identical_to_base` says of either tower whether all its tensors are, byte
        for byte, the base's as it is loaded in float32, so that an index built with the base stays valid.

    Raises:
        FileExistsError: If `output` exists and `overwrite` is false.
        CheckpointError: If the base, the adapter or the proof does not hold. No folder is left then.
        RecipeError: If `alpha` is not in [0, 1], likewise.
    """
    with write_folder(output, overwrite) as staging:
        fingerprint = fingerprint_weights(resolve_checkpoint(checkpoint))
        model = merge_adapter(load_model(checkpoint), adapter, fingerprint)
        if alpha == 1 and temperature in (None, model.temperature.item()):
            shutil.copyfile(witness, staging / WITNESS_FILE)
        else:
            inputs = check_towers(model, witness)
            model.load_state_dict(interpolate(load_model(checkpoint).state_dict(), model.state_dict(), alpha))
            if temperature is not None:
                model.temperature.fill_(temperature)
            record(model, inputs, staging / WITNESS_FILE)
        write_checkpoint(model, open_processor(adapter), staging)
        proof = prove(staging, staging / WITNESS_FILE)
        proof["base_model"] = checkpoint
        proof["alpha"] = alpha
        proof["temperature"] = model.temperature.item()
        proof["identical_to_base"] = _find_identical(model.state_dict(), load_model(checkpoint).state_dict())
        proof["sha256"]["base_model"] = fingerprint
        proof["sha256"]["adapter"] = fingerprint_file(adapter / "adapter_model.safetensors")
        write_json(staging / PROOF_FILE, proof)
    return proof


def _find_identical(merged: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, bool]:
    """Whether a tower's tensors are the base's byte for byte, whatever the precision the base is stored in."""
    return {
        tower: all(
            tensor.numpy().tobytes() == base[name].numpy().tobytes()
            for name, tensor in merged.items()
            if name.startswith(prefixes)
        )
        for tower, prefixes in _TOWERS.items()
    }


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
