"""Solves ALIGN-mini's text projection: the one part of it that no published checkpoint holds.

The two towers of ALIGN-mini never saw each other. What they share is ImageNet's thousand class names: Lite0's
head holds a direction for each class in the space of pooled image features, and MiniLM reads each name. Ridge
regression from the second to the first aligns them, without a single image.

    python datasets/align_mini/solve.py

writes the float16 matrix that the package ships and prints the fingerprint that `finetune/model/mini.py` expects.
The last bits of the solution differ between machines, so run it only to change the alignment: every adapter
trained on ALIGN-mini is bound to the fingerprint of its matrix.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AlignTextConfig, AlignTextModel, AutoTokenizer

from finetune.core.files import read_json
from finetune.model.mini import (
    SHIPPED,
    TEXT_PROJECTION,
    TOKENIZER,
    find_source,
    read_lite0,
    read_text_tower,
    write_mini,
)
from finetune.model.weights import Weights

CLASS_NAMES = Path(__file__).with_name("imagenet_classes.txt")
TEMPLATES = ("a photo of a {}.", "an image of a {}", "{}", "a drawing of a {}")


def class_directions(lite0: dict[str, Tensor]) -> Tensor:
    """Finds the direction of pooled image features that most raises each class's logit in Lite0's own head.

    The head is convolution, BatchNorm, ReLU6, mean, linear layer. To make it linear, each unit is weighted with the
    probability that its ReLU is open, for normally distributed inputs with BatchNorm's own statistics.

    Returns:
        Float64 tensor of shape (1000, 320), centred over the classes, rows of length 1.
    """
    head = {name: tensor.double() for name, tensor in lite0.items() if name.startswith(("_bn1", "_conv_head", "_fc"))}
    gain = (
        head["_bn1.weight"]
        / (head["_bn1.running_var"] + read_json(SHIPPED / "config.json")["vision_config"]["batch_norm_eps"]).sqrt()
    )
    open_chance = torch.special.ndtr(head["_bn1.bias"] / head["_bn1.weight"].abs())
    directions = (head["_fc.weight"] * open_chance * gain) @ head["_conv_head.weight"].flatten(1)
    return normalize(directions - directions.mean(0), dim=1)


@torch.inference_mode()
def first_token_states(texts: list[str], batch_size: int = 200) -> Tensor:
    """Computes MiniLM's state of the first token, which ALIGN projects: float64 of shape (len(texts), 384)."""
    model = AlignTextModel(AlignTextConfig.from_pretrained(SHIPPED)).eval()
    model.load_state_dict(read_text_tower())
    tokenizer = AutoTokenizer.from_pretrained(find_source(TOKENIZER).parent, local_files_only=True)
    states = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(texts[start : start + batch_size], padding=True, return_tensors="pt")
        states.append(model(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, 0])
    return torch.cat(states).double()


def ridge(inputs: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Solves ridge regression without intercept.

    Args:
        inputs: Float64 tensor of shape (N, D).
        targets: Float64 tensor of shape (N, E).
        penalty: In units of N times the mean variance of the inputs.

    Returns:
        Float64 tensor of shape (E, D), as a linear layer's weight.
    """
    ridge_term = penalty * len(inputs) * inputs.var(0, correction=0).mean()
    gram = inputs.T @ inputs + ridge_term * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    return torch.linalg.solve(gram, inputs.T @ targets).T.contiguous()


def main() -> None:
    """Solves and writes the matrix, and prints how many class names find their own direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=TEXT_PROJECTION, help="default: %(default)s")
    parser.add_argument("--penalty", type=float, default=0.3, help="ridge penalty, default: %(default)s")
    arguments = parser.parse_args()

    names = CLASS_NAMES.read_text(encoding="utf-8").splitlines()
    directions = class_directions(read_lite0())
    states = first_token_states([template.format(name) for template in TEMPLATES for name in names])
    weight = ridge(states, directions.repeat(len(TEMPLATES), 1), arguments.penalty).half()
    bias = torch.zeros(len(weight), dtype=torch.float16)  # an intercept was tried: no gain on held-out captions
    save_file({"text_projection.weight": weight, "text_projection.bias": bias}, arguments.output)
    arguments.output.chmod(0o644)  # safetensors makes files private, and a wheel would carry that on

    nearest = (states @ weight.double().T @ directions.T).argmax(1)
    hits = nearest == torch.arange(len(names)).repeat(len(TEMPLATES))
    print(f"{hits.double().mean():.1%} of the class names find their own direction")
    if arguments.output == TEXT_PROJECTION:
        with tempfile.TemporaryDirectory() as folder:
            write_mini(Path(folder))
            print(f'FINGERPRINT = "{Weights(Path(folder)).fingerprint}"')


if __name__ == "__main__":
    main()
