"""Towers that embed a batch in parts have the loss and the gradients of the whole batch, in the memory of a part."""

import copy
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from finetune.core.types import Batch, Embeddings
from finetune.model.fused import fuse_image_layers
from finetune.model.fused_text import fuse_text_layers
from finetune.model.lora import TowerLora
from finetune.model.recompute import recompute_blocks
from finetune.model.towers import AlignTowers
from finetune.objectives import Contrastive, Objective, Sigmoid

from .pairs import build_moved

LORA = TowerLora(rank=2)
KINDS = {
    "both towers": (LORA, LORA),
    "image tower": (LORA, None),
    "text tower": (None, LORA),
    "temperature": (None, None),
    "last blocks": (TowerLora(rank=2, last_blocks=2), TowerLora(rank=2, last_blocks=1)),
    "rsLoRA": (TowerLora(rank=3, use_rslora=True), TowerLora(rank=2, use_rslora=True)),
    "DoRA": (TowerLora(rank=2, use_dora=True), TowerLora(rank=2, use_dora=True)),
    "whole layers": (TowerLora(rank=2, whole=["depthwise", "norm"]), TowerLora(rank=2, whole=["norm"])),
    "whole towers": (TowerLora(layers=[], whole=["all"]), TowerLora(layers=[], whole=["all"])),
    "dropout": (TowerLora(rank=2, dropout=0.5), TowerLora(rank=2, dropout=0.3)),
}


class Hinge(Objective):
    """An objective of a user, with a parameter of its own: texts of other images must be farther by a margin."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = torch.nn.Parameter(torch.tensor(0.2))

    def forward(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        cosines = embeddings.image_embeds @ embeddings.text_embeds.T
        hinges = (self.margin + cosines - cosines.diagonal()[:, None]).relu() / embeddings.temperature
        return (hinges.sum(1) * batch.weights).mean()


OBJECTIVES = {
    "contrastive": Contrastive(),
    "label smoothing": Contrastive(label_smoothing=0.1),
    "sigmoid": Sigmoid(bias=-0.5),
    "a user's": Hinge(),
}


@pytest.fixture(scope="module")
def rows(batch) -> Batch:
    """Five rows of unequal weight; two of them are positives of each other."""
    few = Batch(*(tensor[:5] for tensor in batch))
    return few._replace(caption_ids=torch.tensor([0, 1, 0, 2, 3]), weights=torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0]))


def build_towers(checkpoint: str, kind: str, fused: bool = True) -> AlignTowers:
    """Towers in which all that is trained is away from its start."""
    towers = build_moved(checkpoint, *KINDS[kind])
    if fused:
        fuse_image_layers(towers.align.vision_model)
        fuse_text_layers(towers.align.text_model, towers.align.text_projection)
    return towers


def measure(
    towers: AlignTowers, batch: Batch, objective: Objective, embed: Callable[[AlignTowers, Batch], Embeddings]
) -> dict[str, Tensor]:
    """The loss, every gradient, and what is drawn next."""
    torch.manual_seed(2)
    objective = copy.deepcopy(objective).to(towers.temperature.dtype)
    loss = objective(embed(towers, batch), batch)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in towers.named_parameters() if parameter.grad is not None}
    own = {f"objective.{name}": parameter.grad for name, parameter in objective.named_parameters()}
    return gradients | own | {"loss": loss.detach(), "random": torch.rand(3, dtype=torch.float64)}


def embed_whole(towers: AlignTowers, batch: Batch) -> Embeddings:
    towers.micro_batch = None
    return towers(batch)


def embed_parts(towers: AlignTowers, batch: Batch, autocast: bool = False) -> Embeddings:
    towers.micro_batch = 2
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return towers(batch)


def embed_part_by_part(towers: AlignTowers, batch: Batch, autocast: bool = False) -> Embeddings:
    """The same parts one after the other, their graphs kept."""
    towers.micro_batch = None

    def embed(tower: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        found = []
        for part in ([0, 1], [2, 3], [4]):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found.append(tower(*(tensor[part] for tensor in inputs)))
        return torch.cat(found)

    images = embed(towers.image_features, batch.pixel_values)
    texts = embed(towers.text_features, batch.input_ids, batch.attention_mask)
    return Embeddings(images, texts, towers.temperature)


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= tolerance * (tensor.norm() + 1e-4), name


@pytest.mark.parametrize("fused", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["fused", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_whole_batch(tiny, rows, kind, fused):
    towers, rows = build_towers(tiny, kind, fused).double(), rows._replace(pixel_values=rows.pixel_values.double())
    expected = embed_part_by_part if kind == "dropout" else embed_whole
    whole = measure(copy.deepcopy(towers), rows, Contrastive(), expected)
    assert whole["model.temperature" if kind == "temperature" else next(iter(whole))].norm() > 0
    assert_near(measure(towers, rows, Contrastive(), embed_parts), whole, 1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_that_holds_for_each_objective_and_its_own_parameters(tiny, rows, name):
    towers, rows = build_towers(tiny, "both towers").double(), rows._replace(pixel_values=rows.pixel_values.double())
    whole = measure(copy.deepcopy(towers), rows, OBJECTIVES[name], embed_whole)
    assert_near(measure(towers, rows, OBJECTIVES[name], embed_parts), whole, 1e-12)


@pytest.mark.parametrize(
    ("autocast", "recompute"),
    [
        (True, True),
        *(pytest.param(*two, marks=pytest.mark.slow) for two in ((False, False), (False, True), (True, False))),
    ],
)
def test_both_passes_compute_the_same(tiny, rows, autocast, recompute):
    """With dropout's noise, under autocast, with blocks that are computed again themselves."""
    towers = build_towers(tiny, "dropout")
    if recompute:
        recompute_blocks(towers.align.vision_model)
    whole, parts = (partial(embed, autocast=autocast) for embed in (embed_part_by_part, embed_parts))
    expected = measure(copy.deepcopy(towers), rows, Contrastive(), whole)
    found = measure(towers, rows, Contrastive(), parts)
    assert all(found[name].equal(expected[name]) for name in ("loss", "random"))
    assert_near(found, expected, 1e-6)  # gradients of the parts are added in another order


def test_the_gradient_of_pixels_comes_through(tiny, rows):
    towers, found = build_towers(tiny, "both towers").double(), []
    for embed in (embed_whole, embed_parts):
        pixels = rows.pixel_values.double().requires_grad_()
        measure(towers, rows._replace(pixel_values=pixels), Contrastive(), embed)
        found.append({"pixels": pixels.grad})
    assert_near(found[1], found[0], 1e-12)


@pytest.mark.parametrize("kind", ["both towers", "temperature"])
def test_no_more_rows_than_asked_are_embedded_at_a_time(tiny, rows, kind):
    towers, seen = build_towers(tiny, kind), []
    for tower in (towers.align.vision_model, towers.align.text_model):
        tower.register_forward_pre_hook(lambda *given: seen.append(given[2]), with_kwargs=True)

    def sizes() -> list[int]:
        found = [len(named.get("pixel_values", named.get("input_ids"))) for named in seen]
        seen.clear()
        return found

    loss = Contrastive()(embed_parts(towers, rows), rows)
    assert sizes() == 2 * [2, 2, 1]
    loss.backward()
    assert sizes() == ([] if kind == "temperature" else [1, 2, 2, 1, 2, 2])  # nothing is trained: nothing again
    with torch.no_grad():
        embed_parts(towers, rows)
    assert sizes() == 2 * [2, 2, 1]


class Kept:
    """A tensor that a graph keeps, as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_between_the_passes_no_graph_is_kept(tiny, rows):
    towers, sizes = build_towers(tiny, "both towers"), []
    weights = {tensor.data_ptr() for tensor in towers.state_dict().values()}
    for embed in (embed_parts, embed_whole):
        kept = weakref.WeakSet[Kept]()

        def pack(tensor: Tensor, kept=kept) -> Kept:
            kept.add(packed := Kept(tensor.detach()))
            return packed

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
            embeddings = embed(towers, rows)
        sizes.append(sum(it.tensor.nbytes for it in kept if it.tensor.data_ptr() not in weights))
        del embeddings
    inputs = sum(tensor.nbytes for tensor in (rows.pixel_values, rows.input_ids, rows.attention_mask))
    assert inputs <= sizes[0] <= 1.01 * inputs < sizes[1] / 10


def test_a_second_derivative_is_refused(tiny, rows):
    towers = build_towers(tiny, "both towers")
    loss = Contrastive()(embed_parts(towers, rows), rows)
    trained = [parameter for parameter in towers.parameters() if parameter.requires_grad]
    first = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(gradient.square().sum() for gradient in first if gradient is not None).backward()
