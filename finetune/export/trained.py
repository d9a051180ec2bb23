"""What a run trained, at the interpolation and the temperature that were chosen."""

from functools import cached_property

from torch import Tensor
from transformers import AlignModel, AlignProcessor

from finetune.export.choose_interpolation import Choice
from finetune.export.witness import ask_model, check_model, read_witness
from finetune.model.base import Base, open_processor
from finetune.model.head import LinearHead
from finetune.model.interpolate import interpolate
from finetune.model.layers import TOWERS
from finetune.model.merge import merge_adapter
from finetune.model.weights import as_bytes, fingerprint_state
from finetune.run.folder import RunFolder


class TrainedModel:
    """The model that a run exports: its adapter merged, its head, and what both must answer.

    The adapter, the head and the witness in the run's folder are all that was trained. Interpolation, and the
    temperature that was fitted, are applied here and nowhere else.

    Args:
        run: The run's folder, which holds what was trained.
        base: The base of the training.
        choice: The interpolation and the temperature.
    """

    def __init__(self, run: RunFolder, base: Base, choice: Choice) -> None:
        self.run = run
        self.base = base
        self.choice = choice

    @cached_property
    def processor(self) -> AlignProcessor:
        """The processor that was trained with."""
        return open_processor(self.run.processor)

    @cached_property
    def trained_head(self) -> LinearHead | None:
        """The head as it was trained; None where there is none.

        Raises:
            CheckpointError: If its file is damaged.
        """
        return LinearHead.read(self.run.head) if self.run.head.is_file() else None

    @cached_property
    def head(self) -> LinearHead | None:
        """The head at the interpolation, its logits scaled by the temperature; None where there is none."""
        trained = self.trained_head
        return None if trained is None else trained.at(self.choice.interpolation, self.choice.scale)

    @cached_property
    def recorded(self) -> dict[str, Tensor]:
        """Held-back inputs and what the model that was trained, adapted and unmerged, made of them.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        return read_witness(self.run.witness)

    @cached_property
    def model(self) -> AlignModel:
        """The merged model at the interpolation, at its temperature. The merge has reproduced the witness first.

        Raises:
            CheckpointError: If the adapter does not suit the base, or the merge does not reproduce the witness.
            RecipeError: If the interpolation is not in [0, 1].
        """
        model = merge_adapter(self.base, self.run.adapter) if self.run.adapter.is_dir() else self.base.load()
        check_model(model, self.recorded, self.trained_head)
        model.load_state_dict(interpolate(self.base.state_dict(), model.state_dict(), self.choice.interpolation))
        if self.choice.temperature is not None and self.trained_head is None:  # else it is that of the head's scores
            model.temperature.data.fill_(self.choice.temperature.fitted)
        return model

    @cached_property
    def witness(self) -> dict[str, Tensor]:
        """Held-back inputs and what the exported model must answer.

        At interpolation 1 these are the answers of the adapted, unmerged model, whatever the temperature. Between base
        and trained there is no such model: there they are those of the interpolated one in this process.

        Raises:
            CheckpointError: As for `model`.
        """
        if self.choice.interpolation == 1:
            answers = {"temperature": self.model.temperature.detach().clone()}
            if "logits" in self.recorded:
                answers["logits"] = self.choice.scale * self.recorded["logits"]
        else:
            answers = ask_model(self.model, self.recorded, self.head)
        return {**self.recorded, **answers}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the merged model's weights, those of the checkpoint that is written of it."""
        return fingerprint_state(self.model.state_dict())

    def unchanged_towers(self) -> dict[str, bool]:
        """Returns of either tower whether all its tensors are, byte for byte, the base's in float32."""
        base = self.base.state_dict()
        return {
            tower.name: all(
                as_bytes(tensor) == as_bytes(base[name])
                for name, tensor in self.model.state_dict().items()
                if tower.owns(name)
            )
            for tower in TOWERS
        }
