"""What a training depends on beside the recipe, as `environment.json` records it."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.remote.places import is_remote
from finetune.data.remote.store import open_store
from finetune.data.table.labels import read_names
from finetune.pipeline.stage import compare
from finetune.pipeline.work import Work
from finetune.run.results import installed_versions


def describe_environment(work: Work) -> dict[str, Any]:
    """Returns what a training starts from: versions, the device, the table's files, the base.

    Args:
        work: The run's.
    """
    files, store = work.data.rows.files, open_store()
    remote = [{"path": file, "version": store.known(file).version} for file in files if is_remote(file)]
    local = [{"path": file, "sha256": work.sources[file]} for file in files if Path(file).is_file()]
    return {
        "versions": _versions(),
        "platform": platform.platform(),
        "device": _name(work.device),
        "table": [*local, *remote],
        "classes": list(work.data.kind.classes),
        "captions": bool(work.data.table.caption),
        "templates": list(work.data.templates),
        "names": _class_names(work.data),
        "label_separator": work.data.table.label_separator,
        "checkpoint": {
            "name": work.base.name,
            "public_name": work.base.public_name,
            "sha256": work.base.fingerprint,
        },
    }


def find_changes(recorded: Mapping[str, Any], device: torch.device) -> list[str]:
    """Returns the versions, and the device, that are others now, in words.

    Args:
        recorded: What `describe_environment` returned then.
        device: The device now.
    """
    before, now = {**recorded["versions"], "device": recorded["device"]}, {**_versions(), "device": _name(device)}
    return [f"{name} from {before.get(name)} to {now.get(name)}" for name in compare(before, now)]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **installed_versions()}


def _class_names(data: ImageTextDataModule) -> dict[str, str]:
    """The display name of each label of the table that has another than itself."""
    if data.table.names is None:
        return {}
    names = read_names(Path(data.table.names).expanduser(), "data.table.names")
    return {label: name for label, name in names.items() if name in data.kind.classes}
