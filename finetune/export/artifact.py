"""A folder for users: written, witnessed, proven in a fresh process, described."""

import inspect
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors.torch import save
from torch import Tensor

from finetune.core.files import refuse_existing, require_own, write_bytes, write_folder, write_json
from finetune.core.places import require_place, require_utf8
from finetune.export.cards import Card, write_card
from finetune.export.facts import Facts
from finetune.export.onnx_files import OnnxFiles
from finetune.export.onnx_proof import has_onnx, prove_onnx
from finetune.export.proof import WITNESS_FILE, FreshProcess, fingerprint_artifact, prove
from finetune.export.trained import TrainedModel
from finetune.run.folder import RunFolder
from finetune.run.measurement import MEASUREMENT, Measurement, write_measurement
from finetune.run.results import PROOF_FILE


class Artifact(ABC):
    """One kind of folder that is made of a trained model. Another kind is one file and one line in `artifacts.py`.

    Attributes:
        name: Name of the kind, and of its folder in a run.
        relative: Whether a difference counts as a share of the largest recorded answer.
        exact: The answers that may not differ at all.
        origins: Names of those hashes in the proof that say what the folder was made of.
    """

    name: ClassVar[str]
    by_head: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    exact: ClassVar[tuple[str, ...]] = ()
    origins: ClassVar[frozenset[str]]

    @classmethod
    @abstractmethod
    def of(cls, trained: TrainedModel) -> Self | None:
        """Returns the artifact of a trained model; None where this kind cannot be made of it.

        Args:
            trained: The model.
        """

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Writes the model and what prepares its inputs.

        Args:
            folder: An existing, empty folder.
        """

    @abstractmethod
    def witness(self) -> dict[str, Tensor]:
        """Returns inputs and what the folder must answer."""

    @staticmethod
    @abstractmethod
    def answer(folder: str, witness: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Opens a folder as a user would, and answers the inputs of its witness.

        A fresh process runs the source of this function and nothing else of this package. So whatever the function
        needs it imports in its own body; it reads no name of its module, and cannot import `finetune`.

        Args:
            folder: The folder's path.
            witness: What `witness` returned.

        Returns:
            The answers, by the names under which the witness records them; and, by kind of fault, the names of tensors
            that the folder lacks or that are left over.
        """

    @abstractmethod
    def origin(self) -> dict[str, Any]:
        """Returns what the proof says of the origin: `base_model`, and the hashes that `origins` names as `sha256`."""

    @classmethod
    @abstractmethod
    def card(cls, folder: str, proof: Mapping[str, Any]) -> Card:
        """Returns what the card says of this kind of folder.

        Args:
            folder: The folder's name.
            proof: The content of `merge_proof.json`.
        """

    @classmethod
    def prove(cls, folder: Path, fresh: FreshProcess) -> dict[str, Any]:
        """Checks a folder of this kind against its witness, see `finetune.export.proof.prove`; its ONNX files likewise.

        Args:
            folder: The folder, witness included.
            fresh: The process that opens it.
        """
        code = textwrap.dedent(inspect.getsource(cls.answer))
        proof = prove(folder, cls.name, code, cls.relative, cls.exact, fresh)
        return {**proof, "onnx": prove_onnx(folder)} if has_onnx(folder) else proof

    def export(
        self,
        output: Path,
        title: str,
        metrics: Mapping[str, Any],
        measurement: Measurement | None = None,
        overwrite: bool = False,
        fresh: FreshProcess | None = None,
        onnx: OnnxFiles | None = None,
        facts: Facts | None = None,
    ) -> dict[str, Any]:
        """Writes the folder, with witness, proof and card, once a fresh process has reproduced the witness.

        Args:
            output: The folder to write.
            title: Heading of the card, the run's name.
            metrics: What the card says of the folder, see `write_card`.
            measurement: What `finetune compare` reads of the folder, where it was measured.
            overwrite: Whether an existing `output` is replaced.
            fresh: The process that opens the folder for its proof; None starts one.
            onnx: What is written in ONNX beside the model.
            facts: What the card says of the training.

        Returns:
            The content of `merge_proof.json`.

        Raises:
            FileExistsError: If `output` exists and `overwrite` is false, or is no folder that was exported.
            CheckpointError: If the proof does not hold. No folder is left then.
        """
        require_exportable(output, overwrite)
        own = FreshProcess() if fresh is None else nullcontext(fresh)
        with own as opener, write_folder(output, overwrite) as staging:
            self.write(staging)
            if onnx is not None:
                onnx.write(staging)
            write_bytes(
                staging / WITNESS_FILE,
                save({name: tensor.contiguous() for name, tensor in self.witness().items()}),
            )
            origin = self.origin()
            hashes = {**fingerprint_artifact(staging), **origin["sha256"]}
            proof = {**self.prove(staging, opener), **origin, "sha256": hashes}
            write_json(staging / PROOF_FILE, proof)
            card = self.card(output.name, proof)
            if onnx is not None:
                card = card._replace(more=onnx.describe(output.name, proof["onnx"]))
            write_card(staging, card, title, metrics, facts)
            if measurement is not None:
                write_measurement(measurement, staging / MEASUREMENT)
        return proof


def require_exportable(output: Path, overwrite: bool) -> None:
    """Refuses to replace what exists unasked, and what no export wrote: a run, or a user's own files.

    Args:
        output: The folder to write.
        overwrite: Whether an existing folder is replaced.

    Raises:
        FileExistsError: If `output` exists and `overwrite` is false, or is no folder that was exported.
        OSError: If nothing can be written there, or its path is not UTF-8.
    """
    require_utf8(output)
    require_place(output)
    refuse_existing(output, overwrite)
    require_own(output, lambda names: PROOF_FILE in names and RunFolder(output).recipe.name not in names)
