"""What the screen shows of a finished run."""

from finetune.core.files import read_json
from finetune.data.checks.unreadable import describe_skipped, read_skipped
from finetune.export.artifacts import ARTIFACTS
from finetune.run.folder import RunFolder
from finetune.run.results import PROOF_FILE, format_proof, format_results


def describe(run: RunFolder) -> str:
    """Returns the tables of a finished run, what it exported, where its files lie, and which rows were left out.

    Args:
        run: A finished run.
    """
    folders = [folder for kind in ARTIFACTS if (folder := run.path / kind.name).is_dir()]
    return "\n".join(
        [
            format_results(read_json(run.metrics)),
            "",
            *(f"{folder.name:<11} {folder}: {format_proof(read_json(folder / PROOF_FILE))}" for folder in folders),
            f"run         {run.path}",
            *describe_skipped(read_skipped(run.skipped), run.skipped),
        ]
    )
