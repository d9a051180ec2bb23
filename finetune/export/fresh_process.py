"""Opens an exported folder as any user would and puts the witness's inputs in. Run by path, never imported.

The process has torch, transformers, and safetensors, which transformers brings; it cannot import this package. Each
line of the standard input asks about a folder: a JSON list of the folder, its witness, and code that opens it. That is
the source of a function `answer`, see `Artifact.answer`, which the package has sent and not the folder. For each a line
is printed, JSON after "report: ": how far each answer is from the one recorded.
"""

import __future__

import gc
import json
import platform
import sys
from typing import Any

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage, and looking for it takes seconds

import torch
import transformers
from safetensors.torch import load_file


def report(folder: str, witness: str, code: str) -> dict[str, Any]:
    """Returns the report on a folder."""
    recorded = load_file(witness)
    names: dict[str, Any] = {}
    exec(compile(code, "answer", "exec", __future__.annotations.compiler_flag), names)
    with torch.inference_mode():
        answers, loading = names["answer"](folder, recorded)
    return {
        "differences": {name: float((answer - recorded[name]).abs().max()) for name, answer in answers.items()},
        "largest": {name: float(recorded[name].abs().max()) for name in answers},
        "loading": {name: sorted(map(str, keys)) for name, keys in loading.items() if keys},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


if __name__ == "__main__":
    sys.modules["finetune"] = None  # type: ignore[assignment]  # an import of it fails now, as on a user's machine
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for line in sys.stdin:
        print("report: " + json.dumps(report(*json.loads(line))), flush=True)
