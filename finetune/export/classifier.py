"""Image tower and head as a plain `EfficientNetForImageClassification` folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from finetune.core.files import fingerprint_file
from finetune.core.interpolation import as_json
from finetune.export.artifact import Artifact
from finetune.export.cards import OPEN_IMAGE, Card, name_folder
from finetune.export.local_paths import drop_paths
from finetune.export.trained import TrainedModel
from finetune.model.efficientnet import build_classifier
from finetune.model.head import LinearHead
from finetune.model.pretrained import quiet_transformers


class ImageClassifier(Artifact):
    """A trained head on the image tower, adapters merged, or a point between both and their start.

    Args:
        trained: The model.
        head: Its head.
    """

    name = "classifier"
    by_head = True
    relative = True
    origins = frozenset({"merged", "head"})

    def __init__(self, trained: TrainedModel, head: LinearHead) -> None:
        self.trained = trained
        self.head = head

    @classmethod
    def of(cls, trained: TrainedModel) -> Self | None:
        """Returns the classifier; None where no head was trained."""
        return None if trained.head is None else cls(trained, trained.head)

    def write(self, folder: Path) -> None:
        """Writes `config.json` with the class names, the weights, and the image processor."""
        with quiet_transformers():
            build_classifier(self.trained.model, self.head).save_pretrained(folder, safe_serialization=True)
        self.trained.processor.image_processor.save_pretrained(folder)
        drop_paths(folder)

    def witness(self) -> dict[str, Tensor]:
        """Returns held-back images and their logits."""
        return {name: self.trained.witness[name] for name in ("pixel_values", "logits")}

    @staticmethod
    def answer(folder: str, witness: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Opens a classifier's folder with plain transformers and scores the witness's images."""
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        model, loading = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, use_safetensors=True
        )
        AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        return {"logits": model(witness["pixel_values"]).logits}, loading

    def origin(self) -> dict[str, Any]:
        """Returns base, interpolation, and what the logits were scaled by; hashes of merged weights and head."""
        return {
            "base_model": self.trained.base.public_name,
            "interpolation": as_json(self.trained.choice.interpolation),
            "scale": self.trained.choice.scale,
            "sha256": {"merged": self.trained.fingerprint, "head": fingerprint_file(self.trained.run.head)},
        }

    @classmethod
    def card(cls, folder: str, proof: Mapping[str, Any]) -> Card:
        """Returns the card of a classifier of fixed classes."""
        return Card(
            base_model=proof["base_model"],
            pipeline_tag="image-classification",
            tags=("align", "efficientnet"),
            summary=f"The image tower of `{proof['base_model']}` with a linear head, fine-tuned by align-finetune, as "
            "a plain `EfficientNetForImageClassification`; the classes are in `config.json`.",
            proof="A fresh process with plain transformers "
            f"{proof['versions']['transformers']} reproduced this model's logits within "
            f"{proof['max_relative_difference']['logits']:.1e} of the largest (`merge_proof.json`). Where "
            "`witness.safetensors` lies beside it, `finetune verify` repeats that on any machine.",
            use="Classification of images of the domain of the training data into the classes of `config.json`.",
            limits=("Each image is answered for by these classes alone, whatever it shows.",),
            code=f"""from PIL import Image, ImageOps
from transformers import AutoImageProcessor, pipeline

{OPEN_IMAGE}
{name_folder(folder)}
processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
classify = pipeline("image-classification", model=folder, image_processor=processor)
print(classify(open_image("photo.png")))
""",
        )
