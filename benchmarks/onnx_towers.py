"""Size and latency of the towers in ONNX, beside torch's.

    python benchmarks/onnx_towers.py
    python benchmarks/onnx_towers.py --checkpoint kakaobrain/align-base --threads 8

Both towers are written as `finetune export --onnx` writes them. In each round onnxruntime and torch (`AlignModel` in
evaluation mode) answer the same inputs, one after the other, on as many threads. The median of the rounds is shown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime
import torch

from finetune.export.onnx_files import ImageTower, OnnxPart, TextTower, write_part
from finetune.model.base import Base

LENGTH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="align-mini")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = Base.open(options.checkpoint)
    align = base.load()
    crop = base.processor().image_processor.crop_size
    torch.manual_seed(0)
    pixels = {"pixel_values": torch.randn(max(options.batches), 3, crop["height"], crop["width"])}
    ids = torch.randint(1, 1000, (max(options.batches), LENGTH))
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    towers: list[tuple[OnnxPart, Callable[..., object], str]] = [
        (OnnxPart("image", ImageTower(align), pixels, 1, "image_features", {}), align.get_image_features, "vision_"),
        (OnnxPart("text", TextTower(align), tokens, 2, "text_features", {}), align.get_text_features, "text_"),
    ]
    print(f"{options.checkpoint}, {options.threads} threads, {options.rounds} rounds\n")
    print("| tower | weights, MB | file, MB | batch | torch, ms | onnxruntime, ms | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for part, ask_torch, prefix in towers:
        weights = sum(t.nbytes for name, t in align.state_dict().items() if name.startswith(prefix)) / 1e6
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tower.onnx"
            write_part(part, path)
            size = path.stat().st_size / 1e6
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = options.threads
            session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        for batch in options.batches:
            inputs = {name: tensor[:batch] for name, tensor in part.inputs.items()}
            arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
            seconds: dict[str, list[float]] = {"torch": [], "onnxruntime": []}
            for _ in range(options.rounds + 2):  # the first two warm up
                with torch.inference_mode():
                    seconds["torch"].append(measure(partial(ask_torch, **inputs)))
                seconds["onnxruntime"].append(measure(partial(session.run, None, arrays)))
            torch_ms, onnx_ms = (1000 * statistics.median(taken[2:]) for taken in seconds.values())
            figures = f"{weights:.1f} | {size:.1f} | {batch} | {torch_ms:.1f} | {onnx_ms:.1f}"
            print(f"| {part.name} | {figures} | {onnx_ms / torch_ms:.2f} |")


def measure(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
