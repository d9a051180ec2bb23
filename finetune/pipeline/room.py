"""The memory and the disk that a run takes, by what a few batches of it have taken."""

import shutil
from pathlib import Path

import torch

from finetune.pipeline.forecast import Need
from finetune.training.memory import free_bytes, peak_bytes
from finetune.training.progress import KEPT


def find_memory(device: torch.device, beside: int, free: int) -> list[Need]:
    """Returns the memory of this process and of what is beside it, and that of a GPU.

    Args:
        device: Where the model has been.
        beside: Bytes of other processes, and of what a whole run holds beyond a few batches.
        free: Bytes that there were before.
    """
    repair = "Lower data.batch_size, or set model.micro_batch to auto; data.num_workers 0 saves that of workers."
    found = [Need("memory", peak_bytes() + beside, free, repair)]
    if device.type == "cuda":
        unused = free_bytes(device) + torch.cuda.memory_allocated(device)
        found.append(Need("GPU memory", torch.cuda.max_memory_reserved(device), unused, repair))
    return found


def find_disk(folder: Path, trainings: int, trained: int, saved: int, written: int) -> Need:
    """Returns the disk that a run takes. A training keeps some saves, and has one more while it writes it.

    Args:
        folder: Where the run was tried.
        trainings: How many trainings it has.
        trained: Bytes of the checkpoints of one of them, a save among them.
        saved: Bytes of that save.
        written: Bytes of all else.
    """
    total = trainings * (trained + (KEPT - 1) * saved) + saved + written
    free = shutil.disk_usage(folder).free + count_bytes(folder)
    return Need("disk", total, free, "Free some there, or name another place with --runs DIR.")


def count_bytes(*places: Path) -> int:
    """Returns the bytes of all files at some places; a file with two names counts once.

    Args:
        places: Files and folders.
    """
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    known = {(stat.st_dev, stat.st_ino): stat.st_size for stat in (file.stat() for file in files)}
    return sum(known.values())
