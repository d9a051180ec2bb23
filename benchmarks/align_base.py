"""Peak memory and seconds of a LoRA training step at align-base's size: plain, fused, recomputed, in parts.

    python benchmarks/align_base.py --random --batch-sizes 1 2 4

Prints a Markdown table. Each cell is a fresh process, the columns of a row take turns, and times are medians over
all rounds and steps. A step is forward, contrastive loss, backward and AdamW with the toolkit's default adapters on
both towers, on random images and captions. With `--random` the weights are random too, and no model hub is needed.

Memory is that of weights, gradients, optimizer and activations together: on CUDA the peak of the allocator, on the CPU
the peak of the process minus what it had before the model was loaded, sampled every 2 ms.

`--sides parts --micro-batch 8` embeds 8 rows at a time (`model.micro_batch`), with `--batch-sizes 8 32 512` of batches
of any size; `--checkpoint align-mini --image-size 64` does so with small towers.

`--whole depthwise` trains the image tower's depthwise kernels whole beside the adapters, as `few_shot` does.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from memory_watch import MemoryWatch, resident_bytes
from transformers import AlignConfig, AlignModel, AlignProcessor, AutoImageProcessor
from transformers.utils.logging import disable_progress_bar

from finetune.core.types import Batch
from finetune.export.merged import write_checkpoint
from finetune.model.base import Base
from finetune.model.lora import TowerLora
from finetune.training.heap import freed_memory_kept
from finetune.training.task import AlignTask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIDES: dict[str, dict[str, bool]] = {  # plain PEFT, fused layers, recomputed blocks, a part of the batch at a time
    "plain": {"fused": False},
    "fused": {},
    "recomputed": {"image_recompute": True},
    "parts": {},
}
IMAGE_PROCESSOR = {  # align-base's own settings
    "image_processor_type": "EfficientNetImageProcessor",
    "size": {"height": 346, "width": 346},
    "crop_size": {"height": 289, "width": 289},
    "resample": 2,
    "do_center_crop": True,
    "do_normalize": False,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "include_top": False,
}


def make_random_base(folder: Path) -> str:
    """Writes what `write_random_base` does into a folder within a folder, and returns its path.

    Args:
        folder: The folder around it.
    """
    base = folder / "base"
    base.mkdir()
    write_random_base(base)
    return str(base)


def write_random_base(folder: Path) -> None:
    """Writes random weights of align-base's size with align-base's image processor and align-mini's tokenizer.

    Convolutions have unit gain and BatchNorm is calibrated on noise, so that image features vary.

    Args:
        folder: An existing, empty folder.
    """
    torch.manual_seed(0)
    model = AlignModel(AlignConfig())
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for module in model.vision_model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    for norm in norms:
        norm.momentum = None  # statistics become the mean over the batches seen
        norm.reset_running_stats()
    model.vision_model.train()
    with torch.no_grad():
        for _ in range(2):
            model.get_image_features(pixel_values=torch.randn(4, 3, 193, 193))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSOR))
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    processor = AlignProcessor(image_processor, Base.open("align-mini").processor().tokenizer)
    write_checkpoint(model.eval(), processor, folder)


def random_batch(rows: int, side: int, tokens: int) -> Batch:
    """Draws noise and words without padding, all rows different."""
    ids = torch.arange(rows)
    return Batch(
        pixel_values=torch.randint(256, (rows, 3, side, side), dtype=torch.uint8),
        input_ids=torch.randint(1000, 30000, (rows, tokens)),
        attention_mask=torch.ones(rows, tokens, dtype=torch.long),
        rows=ids,
        image_ids=ids,
        caption_ids=ids,
        label_ids=torch.full_like(ids, -1),
        weights=torch.ones(rows),
    )


def measure_steps(options: argparse.Namespace, rows: int, side: str) -> dict[str, Any]:
    """Measures peak memory in bytes, None where there is too little of it, and the seconds of each step."""
    torch.manual_seed(0)
    before = resident_bytes()
    parts = options.micro_batch if side == "parts" else None
    lora = TowerLora(whole=options.whole)
    task = AlignTask(options.checkpoint, image_lora=lora, micro_batch=parts, **SIDES[side]).to(DEVICE)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-4)
    batch = Batch(*(tensor.to(DEVICE) for tensor in random_batch(rows, options.image_size, options.tokens)))
    seconds = []
    try:
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with MemoryWatch(0.002) as watch, freed_memory_kept():
            for _ in range(1 + options.steps):  # the first warms up
                start = time.perf_counter()
                with torch.autocast(DEVICE, torch.bfloat16, enabled=options.bf16):
                    loss = task.loss(task(batch), batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if DEVICE == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return {"memory": None, "seconds": []}
    memory = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else watch.peak - before
    return {"memory": memory, "seconds": seconds[1:]}


def measure_in_fresh_process(options: argparse.Namespace, rows: int, side: str) -> dict[str, Any]:
    """Calls `measure_steps` in a process that does nothing else."""
    words = [
        *("--checkpoint", options.checkpoint, "--steps", options.steps, "--image-size", options.image_size),
        *("--tokens", options.tokens, "--micro-batch", options.micro_batch, "--cell", rows, side),
        *(["--bf16"] if options.bf16 else []),
        *(["--whole", *options.whole] if options.whole else []),
    ]
    command = [sys.executable, "-W", "ignore::FutureWarning", __file__, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    cell: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return cell


def measure_table(options: argparse.Namespace) -> str:
    """Measures all cells, taking turns, and returns a Markdown table."""
    cells: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for rows in options.batch_sizes:
            for side in options.sides:
                cells.setdefault((rows, side), []).append(measure_in_fresh_process(options, rows, side))
    heads = [f"{unit}, {side}" for unit in ("GiB", "s/step") for side in options.sides]
    lines = [f"| batch size | {' | '.join(heads)} |", f"| ---: {len(heads) * '| ---: '}|"]
    for rows in options.batch_sizes:
        columns = [describe(cells[rows, side]) for side in options.sides]
        memory, seconds = zip(*columns, strict=True)
        lines.append(f"| {' | '.join([str(rows), *memory, *seconds])} |")
    return "\n".join(lines)


def describe(rounds: list[dict[str, Any]]) -> tuple[str, str]:
    """Writes the largest peak in GiB and the median of the seconds of one cell."""
    if any(cell["memory"] is None for cell in rounds):
        return "out of memory", "-"
    seconds = statistics.median(value for cell in rounds for value in cell["seconds"])
    return f"{max(cell['memory'] for cell in rounds) / 2**30:.2f}", f"{seconds:.3g}"


def device_name() -> str:
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="kakaobrain/align-base", help="hub id or folder (%(default)s)")
    parser.add_argument("--random", action="store_true", help="random weights of align-base's size instead")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4], help="rows a step (1 2 4)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES][:-1], help="columns (all but parts)")
    parser.add_argument("--micro-batch", type=int, default=8, help="rows at a time of parts (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a process (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="processes a cell (%(default)s)")
    parser.add_argument("--image-size", type=int, default=289, help="pixels a side (%(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="length of the captions (%(default)s)")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--whole", nargs="+", help="kinds of layer of the image tower that are trained whole (none)")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    options = build_parser().parse_args()
    disable_progress_bar()
    if options.cell:
        print(json.dumps(measure_steps(options, int(options.cell[0]), options.cell[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.random:
            write_random_base(Path(folder))
            options.checkpoint = folder
        table = measure_table(options)
    precision = "bfloat16 autocast" if options.bf16 else "float32"
    size = f"{options.image_size} px, {options.tokens} tokens"
    print(f"{device_name()}, torch {torch.__version__}, {precision}, {size}\n")
    print(table)


if __name__ == "__main__":
    main()
