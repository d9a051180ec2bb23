"""`python -m finetune`, and the commands `finetune` and `align-finetune`."""

import atexit
import gc
import io
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables by which a user says how the threads of OpenMP wait for work."""


def main() -> int:
    """Runs one command, once the package is known to be whole.

    Returns:
        Exit code, see `finetune.commands.cli.main`.
    """
    escape_what_cannot_be_printed()
    if other := find_other_owner():
        print(
            f"error: Expected the package `finetune` to belong to align-finetune alone, but got {other}, which "
            f"writes into the same folder, {Path(__file__).parent}. Keep one of them in an environment: "
            "pip uninstall finetune && pip install --force-reinstall --no-deps align-finetune",
            file=sys.stderr,
        )
        return 2
    let_threads_sleep()
    atexit.register(gc.freeze)  # what is left ends with the process; to look for garbage in it would take seconds
    usual = gc.get_threshold()
    collect_seldom()
    from finetune.commands.cli import main as run_command  # only now, as the other may have replaced parts of it

    try:
        return run_command()
    finally:
        gc.set_threshold(*usual)


def escape_what_cannot_be_printed() -> None:
    r"""Lets a character that the console's encoding lacks be shown by its number, as `\u2022`, and end no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def let_threads_sleep() -> None:
    """Lets torch's threads sleep between two pieces of work, unless the user has said how they wait.

    Spinning, the default, takes the cores that workers and other programs need. OpenMP reads this when torch is
    imported, and processes that this one starts inherit it.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def collect_seldom() -> None:
    """Lets the garbage collector look far less often than it does by itself.

    While libraries are imported it finds nothing, and takes a fifth of the time. Most memory needs no collector.
    """
    gc.set_threshold(50_000, 10, 10)


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
