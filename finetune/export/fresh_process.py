"""Opens an exported folder as any user would and puts the witness's inputs in. Run by path, never imported.

Knows nothing of this package: torch, transformers, and safetensors, which transformers brings. Prints one JSON
line. Usage: `python fresh_process.py FOLDER WITNESS`.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize


def compare_embeddings(folder: str, recorded: dict[str, Tensor]) -> dict[str, Any]:
    """Largest differences of an `AlignModel`'s normalised embeddings from those recorded."""
    loaded: Any = transformers.AlignModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    model, loading = loaded
    transformers.AlignProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    image = model.get_image_features(pixel_values=recorded["pixel_values"]).pooler_output
    text = model.get_text_features(
        input_ids=recorded["input_ids"], attention_mask=recorded["attention_mask"]
    ).pooler_output
    found = {"image": normalize(image, dim=-1), "text": normalize(text, dim=-1)}
    return {
        "measure": "max_abs_difference",
        "differences": {
            tower: float((embeds - recorded[f"{tower}_embeds"]).abs().max()) for tower, embeds in found.items()
        },
        "temperature_difference": float((model.temperature - recorded["temperature"]).abs()),
        "loading": loading,
    }


def compare_logits(folder: str, recorded: dict[str, Tensor]) -> dict[str, Any]:
    """Largest difference of an image classifier's logits from those recorded, relative to the largest of these."""
    model, loading = transformers.AutoModelForImageClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    logits = model(recorded["pixel_values"]).logits
    worst = (logits - recorded["logits"]).abs().max() / recorded["logits"].abs().max()
    return {"measure": "max_relative_difference", "differences": {"logits": float(worst)}, "loading": loading}


def main(folder: str, witness: str) -> None:
    """Prints the report on a folder of either kind."""
    kind = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["model_type"]
    compare = compare_embeddings if kind == "align" else compare_logits
    with torch.inference_mode():
        report = compare(folder, load_file(witness))
    report["loading"] = {name: sorted(map(str, keys)) for name, keys in report["loading"].items() if keys}
    report["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    main(*sys.argv[1:])
