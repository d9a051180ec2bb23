"""The machine: cores, memory, accelerators, and what its system limits."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from PIL import __version__ as pillow
from PIL import features

from finetune.core.cores import count_cores
from finetune.pipeline.doctor.finding import GIB, Finding
from finetune.training.memory import free_bytes

LEAST_MEMORY = 4 * GIB
"""Of the model, its gradients and one image of align-base's size."""
LEAST_SHARED = GIB
"""Of the batches that workers hand over; a container has 64 MiB of it where nobody asked for more."""
LEAST_FILES = 1024
_SHARED = Path("/dev/shm")
_DRIVER = Path("/proc/driver/nvidia/version")


def find_machine() -> Iterator[Finding]:
    """Yields cores, memory, accelerators, limits, and the formats that Pillow reads."""
    cores, busy = count_cores(), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    repair = "Other programs use them: expect longer steps." if busy > cores else ""
    yield Finding("cores", f"{cores} of {os.cpu_count()}, load {busy:.1f}", repair)
    yield _find_memory()
    yield from _find_accelerators()
    yield from _find_limits()
    formats = [name for name in ("jpg", "webp", "zlib", "libtiff", "avif") if features.check(name)]
    repair = "" if {"jpg", "zlib"} <= {*formats} else "Run: pip install --force-reinstall Pillow"
    turbo = " (libjpeg-turbo)" if features.check_feature("libjpeg_turbo") else ""
    yield Finding("images", f"Pillow {pillow}{turbo}: {', '.join(formats)}", repair, bool(repair))


def _find_memory() -> Finding:
    free = free_bytes(torch.device("cpu"))
    repair = "" if free >= LEAST_MEMORY else "Close other programs, or set data.batch_size or model.micro_batch low."
    return Finding("memory", f"{free / GIB:.1f} GiB free of {psutil.virtual_memory().total / GIB:.1f}", repair)


def _find_accelerators() -> Iterator[Finding]:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        repair = ""
        if _DRIVER.is_file():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            repair = f"There is an NVIDIA driver, but torch {torch.__version__} ({built}) sees no GPU. " + (
                "Update the driver, or check CUDA_VISIBLE_DEVICES."
                if torch.version.cuda
                else "Install the CUDA build of torch."
            )
        yield Finding("accelerator", "none: training runs on the CPU", repair)
    elif device.type != "cuda":
        yield Finding("accelerator", device.type)
    else:
        for number in range(torch.cuda.device_count()):
            free, total = free_bytes(torch.device("cuda", number)), torch.cuda.mem_get_info(number)[1]
            half = "bf16" if torch.cuda.get_device_capability(number) >= (8, 0) else "no bf16"
            repair = "" if free >= LEAST_MEMORY else "Another program holds its memory: end it, or choose another GPU."
            name = f"{torch.cuda.get_device_name(number)}, {half}"
            yield Finding(f"cuda:{number}", f"{name}, {free / GIB:.1f} GiB free of {total / GIB:.1f}", repair)


def _find_limits() -> Iterator[Finding]:
    if _SHARED.is_dir():
        usage = shutil.disk_usage(_SHARED)
        small = usage.total < LEAST_SHARED
        repair = "Start the container with --shm-size=8g, or set data.num_workers to 0." if small else ""
        yield Finding("shared memory", f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f}", repair)
    with suppress(ImportError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        repair = "" if soft == resource.RLIM_INFINITY or soft >= LEAST_FILES else f"Run: ulimit -n {min(hard, 65_536)}"
        yield Finding("open files", f"at most {soft:,}", repair)
