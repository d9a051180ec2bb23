"""What a run trained, at the interpolation and the temperature that were chosen."""

from functools import cached_property

from torch import Tensor
from transformers import AlignModel, AlignProcessor

from finetune.export.choose_interpolation import Choice
from finetune.export.witness import answer, check_answers
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
    def _checked(self) -> tuple[AlignModel, dict[str, Tensor]]:
        """The model as it was trained, merged, and the witness, which it has reproduced in this process."""
        merged = merge_adapter(self.base, self.run.adapter) if self.run.adapter.is_dir() else self.base.load()
        return merged, check_answers(merged, self.run.witness, self.trained_head)

    @cached_property
    def model(self) -> AlignModel:
        """The merged model at the interpolation, at its temperature.

        Raises:
            CheckpointError: If the adapter does not suit the base, or the merge does not reproduce the witness.
        """
        model = self._checked[0]
        model.load_state_dict(interpolate(self.base.state_dict(), model.state_dict(), self.choice.interpolation))
        if self.choice.temperature is not None and self.trained_head is None:  # else it is that of the head's scores
            model.temperature.data.fill_(self.choice.temperature.fitted)
        return model

    @cached_property
    def witness(self) -> dict[str, Tensor]:
        """Held-back inputs and what the exported model must answer.

        At interpolation 1 these are the answers of the adapted, unmerged model. Between base and merge there is no such
        model: there they are the merge's, once it has reproduced the adapted one in this process.

        Raises:
            CheckpointError: If the merge does not reproduce the witness.
        """
        expected = dict(self._checked[1])
        if self.choice.interpolation != 1:
            expected |= answer(self.model, expected, self.head)
        elif self.trained_head is not None:
            expected["logits"] = self.choice.scale * expected["logits"]
        expected["temperature"] = self.model.temperature.detach().clone()
        return expected

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
