"""Opens an exported folder as any user would and puts the witness's inputs in. Run by path, never imported.

The process has torch, transformers, and safetensors, which transformers brings; it cannot import this package. The code
that opens the folder comes on the standard input: the source of a function `answer`, see `Artifact.answer`, which the
package has sent and not the folder. One JSON line is printed: how far each answer is from the one recorded.

Usage: `python fresh_process.py FOLDER WITNESS < CODE`.
"""

import __future__

import json
import platform
import sys
from typing import Any

import torch
import transformers
from safetensors.torch import load_file


def main(folder: str, witness: str, code: str) -> None:
    """Prints the report on a folder."""
    recorded = load_file(witness)
    names: dict[str, Any] = {}
    exec(compile(code, "answer", "exec", __future__.annotations.compiler_flag), names)
    with torch.inference_mode():
        answers, loading = names["answer"](folder, recorded)
    report = {
        "differences": {name: float((answer - recorded[name]).abs().max()) for name, answer in answers.items()},
        "largest": {name: float(recorded[name].abs().max()) for name in answers},
        "loading": {name: sorted(map(str, keys)) for name, keys in loading.items() if keys},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(report))


if __name__ == "__main__":
    sys.modules["finetune"] = None  # type: ignore[assignment]  # an import of it fails now, as on a user's machine
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    main(sys.argv[1], sys.argv[2], sys.stdin.read())
