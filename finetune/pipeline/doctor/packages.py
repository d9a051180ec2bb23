"""The packages that are installed: whether they are those that the toolkit needs, and others that stand in the way."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata, util

from packaging.requirements import Requirement

from finetune.pipeline.doctor.finding import Finding

TOOLKIT = "align-finetune"


def find_packages() -> Iterator[Finding]:
    """Yields versions, requirements that are not met, and packages that break others."""
    yield Finding("python", f"{platform.python_version()} at {sys.executable}")
    needed = [Requirement(text) for text in metadata.requires(TOOLKIT) or ()]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    versions = {one.name: find_version(one.name) for one in needed}
    yield Finding(TOOLKIT, metadata.version(TOOLKIT))
    main = ("torch", "transformers", "peft", "lightning", "torchmetrics", "albumentations")
    yield Finding("packages", ", ".join(f"{name} {versions.get(name)}" for name in main))
    for one in needed:
        version = versions[one.name]
        if version is None or not one.specifier.contains(version, prereleases=True):
            found = f"{version or 'missing'}, where {one.specifier} is needed"
            yield Finding(one.name, found, f"Run: pip install '{one.name}{one.specifier}'", is_fatal=True)
    yield from _find_rivals()
    yield from _find_torchvision()


def find_version(name: str) -> str | None:
    """Returns the version of a package; None where it is not installed.

    Args:
        name: Its name on the package index.
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _find_rivals() -> Iterator[Finding]:
    """Packages that put modules of the same name into place; which of them is imported is chance."""
    owners = metadata.packages_distributions()
    for module, own in (("finetune", TOOLKIT), ("cv2", "opencv-python-headless")):
        others = sorted({*owners.get(module, ())} - {own})
        if others and own in owners.get(module, ()):
            removed = " ".join(others)
            yield Finding(
                module,
                f"a module of {own} and of {', '.join(others)}",
                f"Run: pip uninstall {removed} {own} && pip install {own}",
                is_fatal=module == "finetune",
            )


def _find_torchvision() -> Iterator[Finding]:
    """Of another build than torch's it ends at its import, and transformers imports it where it is there."""
    if util.find_spec("torchvision") is None:
        return
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    version = f"{find_version('torchvision')}, beside torch {find_version('torch')}"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["ended without a word"])[-1]
        yield Finding(
            "torchvision",
            f"{version}, cannot be imported: {reason}",
            "Run: pip uninstall torchvision, which the toolkit does not need; or install the build of this torch.",
            is_fatal=True,
        )
    else:
        yield Finding("torchvision", f"{version} (not needed)")
