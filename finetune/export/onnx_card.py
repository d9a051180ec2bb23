"""What a model card says of ONNX files: what was proven, and code that needs onnxruntime, tokenizers and Pillow."""

import json
from collections.abc import Mapping
from typing import Any

from transformers import AlignProcessor

from finetune.data.prepare.images import ImagePreparation
from finetune.data.prepare.texts import TextEncoder
from finetune.export.cards import OPEN_IMAGE
from finetune.model.pixels import read_levels


def describe_onnx(folder: str, processor: AlignProcessor, proof: Mapping[str, Any]) -> str:
    """Returns the card's section, Markdown.

    Args:
        folder: The exported folder's name.
        processor: What prepares images and texts.
        proof: What `prove_onnx` returned.
    """
    files, version = proof["differences"], proof["versions"]["onnxruntime"]
    listed = ", ".join(f"`onnx/{name}.onnx`" for name in files)
    worst = max(value for measures in files.values() for value in measures.values())
    towers, head = "text" in files, "classifier" in files
    return "\n".join(
        [
            "## ONNX\n",
            f"{listed}: for any batch{' and any length of text' if towers else ''}. A fresh process with onnxruntime "
            f"{version} and without torch answered as the model does within {worst:.1e}, raw and normalised.\n",
            "```python",
            *(["import json"] if head else []),
            "from pathlib import Path\n",
            "import numpy as np",
            "import onnxruntime",
            "from PIL import Image, ImageOps",
            *(["from tokenizers import Tokenizer"] if towers else []),
            f"\n{OPEN_IMAGE}",
            _read_pixels(processor),
            f"folder = Path({json.dumps(folder)})  # of the hub: huggingface_hub.snapshot_download(NAME)\n",
            _OPEN,
            'pixels = np.stack([read_pixels(path) for path in ["photo.png"]])',
            *([_ask_towers(processor)] if towers else []),
            *([_ASK_HEAD] if head else []),
            "```\n",
        ]
    )


_OPEN = """
def open_onnx(name):
    return onnxruntime.InferenceSession(folder / "onnx" / name, providers=["CPUExecutionProvider"])


def normalise(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

"""

_ASK_HEAD = """
classifier = open_onnx("classifier.onnx")
classes = json.loads(classifier.get_modelmeta().custom_metadata_map["classes"])
(logits,) = classifier.run(["logits"], {"pixel_values": pixels})
print([classes[best] for best in logits.argmax(axis=1)])"""


def _read_pixels(processor: AlignProcessor) -> str:
    """Code that does what the image processor does; its arithmetic is one factor and one sum for each channel."""
    preparation = ImagePreparation.from_processor(processor.image_processor)
    levels = read_levels(processor.image_processor).double()
    factor, start = ((levels[:, 255] - levels[:, 0]) / 255).tolist(), levels[:, 0].tolist()
    lines = ["", "def read_pixels(path):", "    image = open_image(path)"]
    if preparation.size is not None:
        height, width = preparation.size
        lines.append(f"    image = image.resize(({width}, {height}), Image.Resampling.{preparation.resample.name})")
    if preparation.crop is not None:
        height, width = preparation.crop
        lines += [
            f"    left, top = (image.width - {width}) // 2, (image.height - {height}) // 2",
            f"    image = image.crop((left, top, left + {width}, top + {height}))",
        ]
    return "\n".join(
        [
            *lines,
            f"    factor, start = np.float32({_as_list(factor)}), np.float32({_as_list(start)})",
            "    return (np.asarray(image, np.float32) * factor + start).transpose(2, 0, 1)\n\n",
        ]
    )


def _as_list(values: list[float]) -> str:
    return f"[{', '.join(f'{value:.9g}' for value in values)}]"


def _ask_towers(processor: AlignProcessor) -> str:
    tokenizer: Any = processor.tokenizer
    side, token = json.dumps(tokenizer.padding_side), json.dumps(tokenizer.pad_token)
    padding = f"direction={side}, pad_id={tokenizer.pad_token_id}, pad_token={token}"
    return f"""
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation({TextEncoder.from_processor(processor).max_length})
tokenizer.enable_padding({padding})
texts = tokenizer.encode_batch(["an image of a cat", "an image of a dog"])
tokens = {{
    "input_ids": np.array([text.ids for text in texts], np.int64),
    "attention_mask": np.array([text.attention_mask for text in texts], np.int64),
}}
(image_features,) = open_onnx("image.onnx").run(["image_features"], {{"pixel_values": pixels}})
(text_features,) = open_onnx("text.onnx").run(["text_features"], tokens)
similarity = normalise(image_features) @ normalise(text_features).T"""
