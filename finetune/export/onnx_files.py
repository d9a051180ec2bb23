"""ONNX files beside an exported folder's weights: the towers and the classifier, for serving without torch."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import AlignModel

from finetune.core.errors import RecipeError
from finetune.core.files import write_bytes
from finetune.data.prepare.texts import TextEncoder
from finetune.export.onnx_card import describe_onnx
from finetune.export.onnx_proof import ONNX_FOLDER, ONNX_WITNESS
from finetune.export.trained import TrainedModel
from finetune.model.head import LinearHead

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
ROWS = 7
"""Rows of the largest batch that is compared."""

LENGTHS = (2, 7, 16)
"""Tokens of the texts that are compared, beside the checkpoint's limit. An empty text has 2."""


class ImageTower(nn.Module):
    """The image tower with pooling over height and width.

    `AlignModel` pools by windows with `ceil_mode`, of which its features fill a part of one. ONNX counts the cells of
    such a window in another way, so the mean is taken over the features themselves, which is the same number.

    Args:
        align: The merged model.
    """

    def __init__(self, align: AlignModel) -> None:
        super().__init__()
        self.tower = align.vision_model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the image features, shape (B, D), not normalised.

        Args:
            pixel_values: Float tensor of shape (B, 3, H, W).
        """
        cells: Tensor = self.tower.encoder(self.tower.embeddings(pixel_values)).last_hidden_state
        return cells.amax((2, 3)) if isinstance(self.tower.pooler, nn.MaxPool2d) else cells.mean((2, 3))


class TextTower(nn.Module):
    """The text tower with its projection.

    Args:
        align: The merged model.
    """

    def __init__(self, align: AlignModel) -> None:
        super().__init__()
        self.tower = align.text_model
        self.projection = align.text_projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns the text features, shape (B, D), not normalised.

        Args:
            input_ids: Int64 tensor of shape (B, L).
            attention_mask: Int64 tensor of shape (B, L), 1 for tokens and 0 for padding.
        """
        states = self.tower(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return cast(Tensor, self.projection(states[:, 0]))


class OnnxPart(NamedTuple):
    """One ONNX file.

    Attributes:
        name: The file's, without its ending.
        module: What it computes.
        inputs: Example inputs of `ROWS` rows, by name.
        dynamic: Number of leading dimensions of each input that may have any size: batch, then length.
        output: The output's name.
        metadata: What the file says of itself.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: int
    output: str
    metadata: dict[str, str]


def require_onnx() -> None:
    """Refuses to go on without the packages of the extra `onnx`.

    Raises:
        RecipeError: If one is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise RecipeError(
            f"Expected the packages {', '.join(PACKAGES)} for --onnx, but got no {', '.join(missing)}. "
            "Run: pip install 'align-finetune[onnx]'."
        )


class OnnxFiles:
    """The ONNX files of a trained model, with inputs and answers by which they are proven.

    Args:
        trained: The model.
        only_classifier: Whether the towers are left out.
    """

    def __init__(self, trained: TrainedModel, only_classifier: bool = False) -> None:
        self.trained = trained
        self.only_classifier = only_classifier

    def write(self, folder: Path) -> None:
        """Writes the folder `onnx`, witness included.

        Args:
            folder: The folder of the artifact, in which there is none.
        """
        target = folder / ONNX_FOLDER
        target.mkdir()
        witness: dict[str, Tensor] = {}
        for part in self.parts():
            write_part(part, target / f"{part.name}.onnx")
            witness |= self._witness(part)
        write_bytes(target / ONNX_WITNESS, save({name: tensor.clone() for name, tensor in witness.items()}))

    def describe(self, folder: str, proof: Mapping[str, Any]) -> str:
        """Returns the section of the model card.

        Args:
            folder: The folder's name.
            proof: What `prove_onnx` returned.
        """
        return describe_onnx(folder, self.trained.processor, proof)

    def parts(self) -> list[OnnxPart]:
        """Returns what is written, file by file."""
        align, head = self.trained.model, self.trained.head
        pixels = {"pixel_values": self._cycle("pixel_values")}
        image = ImageTower(align)
        towers = [
            OnnxPart("image", image, pixels, 1, "image_features", {}),
            OnnxPart("text", TextTower(align), self._draw_texts(LENGTHS[1]), 2, "text_features", {}),
        ]
        kept = [] if self.only_classifier else towers
        return kept if head is None else [*kept, _classifier(image, head, pixels)]

    def _cycle(self, name: str) -> Tensor:
        rows = self.trained.witness[name]
        return rows[torch.arange(ROWS) % len(rows)]

    def _draw_texts(self, length: int) -> dict[str, Tensor]:
        """Texts of random tokens, the first of the whole length, each next one shorter by a token and padded."""
        generator = torch.Generator().manual_seed(length)
        vocabulary = self.trained.model.text_model.embeddings.word_embeddings.num_embeddings
        mask = (torch.arange(length) < (length - torch.arange(ROWS)).clamp(min=1)[:, None]).long()
        ids = torch.randint(1, vocabulary, (ROWS, length), generator=generator)
        return {"input_ids": ids * mask, "attention_mask": mask}

    @torch.no_grad()
    def _witness(self, part: OnnxPart) -> dict[str, Tensor]:
        """Inputs and answers of one file: those held back in training, and batches and lengths of its own."""
        recorded, align = self.trained.witness, self.trained.model
        cases = [
            {name: recorded[name] for name in (*part.inputs, part.output, f"{part.name}_embeds") if name in recorded}
        ]
        if part.name == "text":
            limit = TextEncoder.from_processor(self.trained.processor).max_length
            for length in sorted({*LENGTHS, limit}):
                texts = self._draw_texts(length)
                cases.append({**texts, part.output: align.get_text_features(**texts).pooler_output})
        else:
            features = align.get_image_features(**part.inputs).pooler_output
            head = self.trained.head
            answer = features if part.name == "image" or head is None else head(features)
            cases.append({**part.inputs, part.output: answer})
        return {f"{part.name}.{at}.{name}": tensor for at, case in enumerate(cases) for name, tensor in case.items()}


def _classifier(image: ImageTower, head: LinearHead, pixels: dict[str, Tensor]) -> OnnxPart:
    said = {"classes": json.dumps(head.classes, ensure_ascii=False), "is_multilabel": json.dumps(head.is_multilabel)}
    return OnnxPart("classifier", nn.Sequential(image, head), pixels, 1, "logits", said)


def write_part(part: OnnxPart, path: Path) -> None:
    """Writes one ONNX file, without what the exporter notes of this machine's source files.

    Args:
        part: What is written.
        path: The file.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    free = dict.fromkeys(range(part.dynamic), torch.export.Dim.DYNAMIC)
    with _quiet():
        program: Any = torch.onnx.export(
            part.module.eval(),
            tuple(part.inputs.values()),
            dynamo=True,
            dynamic_shapes=(free,) * len(part.inputs),
            input_names=list(part.inputs),
            output_names=[part.output],
            opset_version=OPSET,
            verbose=False,
        )
        ClearMetadataAndDocStringPass()(program.model)
        program.model.metadata_props.update(part.metadata)
        program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter: what it prints, warns and logs of its own steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
