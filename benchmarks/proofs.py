"""Every task, objective, adapter kind and recipe trained for a few steps, merged, and proven in a fresh process.

    finetune prepare digits && python benchmarks/proofs.py

Prints a Markdown table of the largest difference between the trained model and the exported one: of a component of the
normalised embeddings for the merged checkpoint, and relative to the largest logit for a classifier.

align-mini's squeeze-excite is the identity, so adapters there are refused. To test them, the base is align-mini with
squeeze-excite weights drawn at random.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd
import torch

from finetune.core.files import read_json
from finetune.core.shipped import find_recipe, shipped_recipes
from finetune.export.merged import write_checkpoint
from finetune.model.base import Base
from finetune.pipeline.recipe import read_recipe
from finetune.pipeline.run_recipe import run_recipe
from finetune.run.results import PROOF_FILE, largest_differences

COYO = {
    "clip_similarity_vitb32": "0.35",
    "clip_similarity_vitl14": "0.25",
    "nsfw_score_opennsfw2": "0.01",
    "nsfw_score_gantman": "0.02",
    "watermark_score": "0.1",
    "aesthetic_score_laion_v2": "5.5",
    "num_faces": "0",
    "width": "640",
    "height": "480",
    "text_length": "24",
}
TASKS = {
    "AlignTask, Contrastive": [],
    "AlignTask, Sigmoid": ["--model.objective", "finetune.Sigmoid"],
    "ClassificationTask": ["--model", "finetune.ClassificationTask"],
}
KINDS = {
    "image": ["pointwise", "squeeze_excite", "stem"],
    "text": ["attention", "feed_forward", "projection", "embedding"],
}
VARIANTS = {"LoRA": [], "rsLoRA": ["use_rslora"], "DoRA": ["use_dora"]}
OTHERS = {
    "depthwise kernels whole": ["--model.image_lora.whole", "[depthwise]"],
    "norms whole, both towers": ["--model.image_lora.whole", "[norm]", "--model.text_lora.whole", "[norm]"],
    "BatchNorm statistics": ["--model.image_lora.train_statistics", "true"],
    "last 4 blocks of either": ["--model.image_lora.last_blocks", "4", "--model.text_lora.last_blocks", "4"],
    "everything whole": ["--model.image_lora.whole", "[all]", "--model.text_lora.whole", "[all]"],
    "three trainings averaged": ["--run.soup", "3"],
}


def write_gated_base(folder: Path) -> str:
    """Writes align-mini with squeeze-excite layers that do something."""
    base = Base.open("align-mini")
    model = base.load()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "squeeze_excite" in name:
                scale = parameter[0].numel() ** -0.5 if name.endswith("weight") else 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    folder.mkdir()
    write_checkpoint(model, base.processor(), folder)
    return str(folder)


def write_table(digits: Path, path: Path) -> None:
    """Writes every ninth digit with the columns of every recipe."""
    table = pd.read_csv(digits, dtype=str, keep_default_na=False)[::9]
    table.assign(text=table["caption"], **COYO).to_csv(path, index=False)


def list_cases(gated: str) -> dict[str, tuple[str, list[str]]]:
    """Lists the recipe and the overrides of each line of the table."""
    cases = {name: ("quickstart", words) for name, words in TASKS.items()}
    for variant, switches in VARIANTS.items():
        words = ["--model.checkpoint", gated]
        for tower, kinds in KINDS.items():
            words += [f"--model.{tower}_lora.layers", str(kinds)]
            words += [word for key in switches for word in (f"--model.{tower}_lora.{key}", "true")]
        cases[f"{variant} on every kind of layer"] = ("quickstart", words)
    cases |= {name: ("quickstart", words) for name, words in OTHERS.items()}
    return cases | {f"recipe `{name}`": (name, []) for name in shipped_recipes() if name != "zero_shot"}


def prove(recipe: str, words: list[str], table: Path, images: Path, folder: Path) -> dict[str, float]:
    """Runs a recipe for four steps and reads the proofs of what it exported."""
    settings = {
        "--data.table.path": table,
        "--data.table.images": images,
        "--data.table.split": "split",
        "--data.image_size": 64,
        "--data.num_workers": 0,
        "--data.batch_size": 16,
        "--trainer.accelerator": "cpu",
        "--trainer.max_steps": 4,
        "--trainer.enable_progress_bar": "false",
        "--run.linear_probe": "false",
        "--run.folder": folder,
    }
    if "--model.checkpoint" not in words:
        settings["--model.checkpoint"] = "align-mini"
    options = [str(word) for pair in settings.items() for word in pair]
    run = run_recipe(read_recipe(find_recipe(recipe), [*words, *options]), overwrite=True)
    found: dict[str, float] = {}
    for output in (run.merged, run.classifier):
        if output.is_dir():
            found |= largest_differences(read_json(output / PROOF_FILE))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, default=Path("data/digits/digits.csv"), help="the prepared table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(options.digits, folder / "table.csv")
        lines = []
        for case, (recipe, words) in list_cases(write_gated_base(folder / "gated")).items():
            found = prove(recipe, words, folder / "table.csv", options.digits.parent, folder / "runs")
            cells = [f"{found[key]:.1e}" if key in found else "-" for key in ("image", "text", "logits")]
            lines.append(f"| {case} | {' | '.join(cells)} |")
    print("| trained | image embeddings | text embeddings | logits |\n| --- | ---: | ---: | ---: |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
