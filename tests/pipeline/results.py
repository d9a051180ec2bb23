"""What is left of a run, to be compared with that of another."""

import re

from finetune.core.files import fingerprint_file
from finetune.run.folder import RunFolder

RESULTS = (
    *("choice.json", "training.json", "metrics.json", "metrics.csv", "predictions.csv", "skipped.csv"),
    *("head.safetensors", "witness.safetensors", "adapter", "processor", "merged", "classifier", "measurements"),
)


def contents(run: RunFolder) -> dict[str, str]:
    """What is in each file of a run's results, to the bit. A card's heading, the run's name, does not count."""
    found = {}
    for file in sorted(run.path.rglob("*")):
        name = file.relative_to(run.path).as_posix()
        if file.is_file() and file.name == "README.md":
            found[name] = re.sub(r"(?m)^# .*$", "#", file.read_text())
        elif file.is_file() and name.startswith(RESULTS):
            found[name] = fingerprint_file(file)
    return found
