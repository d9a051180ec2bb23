"""The merged checkpoint: a plain `AlignModel` and `AlignProcessor` folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from transformers import AlignModel, AlignProcessor

from finetune.core.files import fingerprint_file, write_json
from finetune.core.interpolation import as_json
from finetune.export.artifact import Artifact
from finetune.export.cards import OPEN_IMAGE, Card, name_folder
from finetune.export.local_paths import drop_paths
from finetune.export.trained import TrainedModel
from finetune.export.witness import INPUTS
from finetune.model.pretrained import quiet_transformers
from finetune.run.results import list_unchanged_towers


class MergedCheckpoint(Artifact):
    """Adapters folded into their base, or a point between the two.

    Args:
        trained: The model.
    """

    name = "merged"
    exact = ("temperature",)
    origins = frozenset({"base_model", "adapter"})

    def __init__(self, trained: TrainedModel) -> None:
        self.trained = trained

    @classmethod
    def of(cls, trained: TrainedModel) -> Self | None:
        """Returns the merged checkpoint; None where no tower was adapted."""
        return cls(trained) if trained.run.adapter.is_dir() else None

    def write(self, folder: Path) -> None:
        """Writes model and processor so that transformers 4 and 5 open them."""
        write_checkpoint(self.trained.model, self.trained.processor, folder)

    def witness(self) -> dict[str, Tensor]:
        """Returns held-back inputs, their embeddings, and the temperature."""
        answers = ("image_embeds", "text_embeds", "temperature")
        return {name: self.trained.witness[name] for name in (*INPUTS, *answers)}

    @staticmethod
    def answer(folder: str, witness: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Opens a merged folder with plain transformers and embeds the witness's inputs."""
        import torch
        from torch.nn.functional import normalize
        from transformers import AlignModel, AlignProcessor

        loaded: Any = AlignModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, use_safetensors=True
        )
        model, loading = loaded
        AlignProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        texts = {name: witness[name] for name in ("input_ids", "attention_mask")}
        image = model.get_image_features(pixel_values=witness["pixel_values"]).pooler_output
        text = model.get_text_features(**texts).pooler_output
        answers = {
            "image_embeds": normalize(image, dim=-1),
            "text_embeds": normalize(text, dim=-1),
            "temperature": model.temperature,
        }
        return answers, loading

    def origin(self) -> dict[str, Any]:
        """Returns base, interpolation and temperature; `identical_to_base` says of either tower whether all its tensors
        are, byte for byte, the base's in float32, so that an index built with the base stays valid.
        """
        base = self.trained.base
        return {
            "base_model": base.public_name,
            "interpolation": as_json(self.trained.choice.interpolation),
            "temperature": self.trained.model.temperature.item(),
            "identical_to_base": self.trained.unchanged_towers(),
            "sha256": {
                "base_model": base.fingerprint,
                "adapter": fingerprint_file(self.trained.run.adapter / "adapter_model.safetensors"),
            },
        }

    @classmethod
    def card(cls, folder: str, proof: Mapping[str, Any]) -> Card:
        """Returns the card of a zero-shot model."""
        kept = "".join(f" {sentence}" for sentence in list_unchanged_towers(proof))
        return Card(
            base_model=proof["base_model"],
            pipeline_tag="zero-shot-image-classification",
            tags=("align",),
            summary=f"`{proof['base_model']}`, fine-tuned by align-finetune and merged into a plain `AlignModel`.",
            proof="A fresh process with plain transformers "
            f"{proof['versions']['transformers']} reproduced this model's embeddings within "
            f"{max(proof['max_abs_difference'].values()):.1e} (`merge_proof.json`). Where `witness.safetensors` lies "
            f"beside it, `finetune verify` repeats that on any machine.{kept}",
            use="Classification of images by words, and search for images by texts or for texts by images, in the "
            "domain of the training data. Vectors compare with those of this model; with the base's only where a tower "
            "is the base's, byte for byte.",
            limits=("Texts longer than the tokenizer's limit are cut off.",),
            code=f"""from PIL import Image, ImageOps
from transformers import AlignModel, AlignProcessor

{OPEN_IMAGE}
{name_folder(folder)}
processor = AlignProcessor.from_pretrained(folder, backend="pil")
model = AlignModel.from_pretrained(folder)
labels = ["an image of a cat", "an image of a dog"]
inputs = processor(images=open_image("photo.png"), text=labels, truncation=True, return_tensors="pt")
probabilities = model(**inputs).logits_per_image.softmax(dim=1)
""",
        )


def write_checkpoint(model: AlignModel, processor: AlignProcessor, folder: Path) -> None:
    """Writes model and processor so that transformers 4 and 5 open them.

    Args:
        model: The merged model.
        processor: Its processor.
        folder: An existing, empty folder.
    """
    with quiet_transformers():
        model.save_pretrained(folder, safe_serialization=True)
    write_processor(processor, folder)


def write_processor(processor: AlignProcessor, folder: Path) -> None:
    """Writes a processor: nested as transformers 5 reads it, and `preprocessor_config.json` for version 4.

    Args:
        processor: Image processor and tokenizer.
        folder: An existing folder. None of its configurations names a place of this machine afterwards.
    """
    processor.save_pretrained(folder)
    legacy = json.loads(processor.image_processor.to_json_string())
    write_json(folder / "preprocessor_config.json", legacy)
    drop_paths(folder)
