"""`python -m finetune`, and the commands `finetune` and `align-finetune`."""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def main() -> int:
    """Runs one command, once the package is known to be whole.

    Returns:
        Exit code: 0, or 2 where the input or the installation is at fault.
    """
    if other := find_other_owner():
        print(
            f"error: Expected the package `finetune` to belong to align-finetune alone, but got {other}, which "
            f"writes into the same folder, {Path(__file__).parent}. Keep one of them in an environment: "
            "pip uninstall finetune && pip install --force-reinstall --no-deps align-finetune",
            file=sys.stderr,
        )
        return 2
    from finetune.commands.cli import main as run_command  # only now, as the other may have replaced parts of it

    return run_command()


def find_other_owner() -> str | None:
    """The distribution `finetune`, whose package has the same name, if pip put one over the other."""
    try:
        other = distribution("finetune")
    except PackageNotFoundError:
        return None
    shared = Path(str(other.locate_file("finetune"))).resolve() == Path(__file__).resolve().parent
    return f"the distribution finetune {other.version}" if shared else None


if __name__ == "__main__":
    sys.exit(main())
