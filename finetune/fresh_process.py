"""Opens a merged folder as any user would and embeds the witness's inputs. Run by path, never imported.

Knows nothing of this package: torch, transformers, and safetensors, which transformers brings. Prints one JSON
line. Usage: `python fresh_process.py FOLDER WITNESS`.
"""

import json
import platform
import sys
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch.nn.functional import normalize


def compare(folder: str, witness: str) -> dict[str, Any]:
    """Largest differences between the folder's embeddings of the witness's inputs and those recorded in it."""
    model, loading = transformers.AlignModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    transformers.AlignProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    recorded = load_file(witness)
    with torch.inference_mode():
        image = model.get_image_features(pixel_values=recorded["pixel_values"]).pooler_output
        text = model.get_text_features(
            input_ids=recorded["input_ids"], attention_mask=recorded["attention_mask"]
        ).pooler_output
    found = {"image": normalize(image, dim=-1), "text": normalize(text, dim=-1)}
    return {
        "max_abs_difference": {
            tower: float((embeds - recorded[f"{tower}_embeds"]).abs().max()) for tower, embeds in found.items()
        },
        "temperature_difference": float((model.temperature - recorded["temperature"]).abs()),
        "loading": {name: sorted(map(str, keys)) for name, keys in loading.items() if keys},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(json.dumps(compare(*sys.argv[1:])))
