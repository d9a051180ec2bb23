"""Fused layers of the image tower have the loss and the gradients of the layers one by one."""

import copy

import pytest
import torch
from transformers.models.align.modeling_align import AlignVisionSqueezeExciteLayer

from finetune.model import fused
from finetune.model.fused import fuse_image_layers
from finetune.model.lora import TowerLora
from finetune.model.recompute import recompute_blocks
from finetune.model.towers import AlignTowers

from .kept import saved_bytes
from .pairs import build_moved

EVERY_LAYER = ["pointwise", "squeeze_excite", "stem"]
KINDS = {
    "lora": TowerLora(rank=2),
    "every kind of layer": TowerLora(rank=3, layers=EVERY_LAYER),
    "rsLoRA": TowerLora(rank=4, use_rslora=True),
    "DoRA": TowerLora(rank=2, use_dora=True),
    "last blocks": TowerLora(rank=2, last_blocks=2),
    "depthwise whole": TowerLora(rank=2, whole=["depthwise"]),
    "norms whole": TowerLora(rank=2, whole=["norm"]),
    "statistics": TowerLora(rank=2, train_statistics=True),
    "all whole": TowerLora(layers=[], whole=["all"]),
    "dropout": TowerLora(rank=2, dropout=0.5),
    "frozen": None,
}
IN_SINGLE = ("lora", "every kind of layer", "statistics", "all whole")  # the others are slow there: they add up alike


def build_pair(checkpoint: str, lora: TowerLora | None) -> tuple[AlignTowers, AlignTowers]:
    """The same towers twice, all that is trained moved away from its start: layers one by one, and fused."""
    plain = build_moved(checkpoint, lora, None)
    both = plain, copy.deepcopy(plain)
    fuse_image_layers(both[1].align.vision_model)
    return both


def measure(towers: AlignTowers, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss, each gradient, and what the step leaves of the statistics.

    Fused layers lay tensors out by channels. Dropout draws its noise in the order in which a tensor lies in memory.
    """
    torch.manual_seed(2)
    pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
    pixel_values = pixel_values.detach().requires_grad_()  # a frozen tower has a gradient, too: that of its input
    features = towers.image_features(pixel_values)
    loss = (torch.nn.functional.normalize(features) @ torch.randn(features.shape[1]).to(features)).logsumexp(0)
    loss.backward()
    found = {name: parameter.grad for name, parameter in towers.named_parameters() if parameter.grad is not None}
    found |= {"loss": loss.detach(), "pixels": pixel_values.grad, **dict(towers.named_buffers())}
    return {name: tensor.double() for name, tensor in found.items()}


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Each tensor is compared with its own size, in the Euclidean norm; means of channels may be 0 but for rounding."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= tolerance * (tensor.norm() + 1e-4), name


@pytest.fixture(scope="module")
def pixel_values() -> torch.Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_plain_peft(tiny, kind, pixel_values):
    plain, other = (measure(towers.double(), pixel_values.double()) for towers in build_pair(tiny, KINDS[kind]))
    assert len(plain) > 10
    assert_near(other, plain, 1e-12)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in IN_SINGLE)) for kind in KINDS]
)
def test_in_single_precision_they_are_as_near_to_the_truth_as_plain_peft(tiny, kind, pixel_values):
    pair = build_pair(tiny, KINDS[kind])
    exact = measure(copy.deepcopy(pair[0]).double(), pixel_values.double())
    plain, other = (measure(towers, pixel_values) for towers in pair)
    for name, tensor in exact.items():
        allowed = max(1e-5 * tensor.norm(), 10 * (plain[name] - tensor).norm())
        assert (other[name] - tensor).norm() <= allowed, name


@pytest.mark.parametrize("apart", [True, False])
def test_adapters_of_wide_and_of_narrow_layers_have_the_same_gradients(tiny, monkeypatch, pixel_values, apart):
    monkeypatch.setattr(fused, "_is_cheaper_apart", lambda *_: apart)
    plain, other = (towers.double() for towers in build_pair(tiny, TowerLora(rank=2, layers=EVERY_LAYER)))
    assert_near(measure(other, pixel_values.double()), measure(plain, pixel_values.double()), 1e-12)


def test_without_a_graph_the_layers_compute_as_before(tiny, pixel_values):
    """So evaluation, witness and proof do not depend on it, to the bit."""
    plain, other = build_pair(tiny, TowerLora(rank=2, layers=EVERY_LAYER))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(plain.image_features(pixel_values), other.image_features(pixel_values))
    assert not torch.equal(plain.image_features(pixel_values), other.image_features(pixel_values))


def test_half_as_much_is_kept_of_an_image_for_backward():
    one, more = torch.randn(1, 3, 96, 96), torch.randn(5, 3, 96, 96)
    plain, other = (saved_bytes(it, more) - saved_bytes(it, one) for it in build_pair("align-mini", TowerLora()))
    assert other < 0.5 * plain


def test_recomputed_blocks_are_fused_too(tiny, pixel_values):
    _, other = build_pair(tiny, TowerLora(rank=2))
    recomputed = copy.deepcopy(other)
    recompute_blocks(recomputed.align.vision_model)
    expected = measure(other, pixel_values)
    assert all(tensor.equal(expected[name]) for name, tensor in measure(recomputed, pixel_values).items())
    assert saved_bytes(recomputed, pixel_values) < saved_bytes(other, pixel_values) / 2


def test_autocast_rounds_the_fused_layers_no_more_than_the_layers_one_by_one(tiny, pixel_values):
    plain, other = build_pair(tiny, TowerLora(rank=2))
    exact = plain.image_features(pixel_values)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, found = (towers.image_features(pixel_values).float() for towers in (plain, other))
    assert (found - exact).norm() <= 1.5 * (rounded - exact).norm()


def test_a_gate_that_is_one_is_skipped_unless_it_is_trained(tiny):
    def count(checkpoint: str, lora: TowerLora | None) -> int:
        towers = build_pair(checkpoint, lora)[1]
        gates = [it for it in towers.align.modules() if isinstance(it, AlignVisionSqueezeExciteLayer)]
        return sum(type(gate) is fused._IdentityGate for gate in gates)

    assert count("align-mini", TowerLora(rank=2)) == 16
    assert count("align-mini", TowerLora(layers=[], whole=["all"])) == 16  # the frozen original beside PEFT's copy
    assert count(tiny, TowerLora(rank=2)) == 0


def test_names_and_tensors_stay_as_they_were(tiny):
    plain, other = build_pair(tiny, TowerLora(rank=2))
    assert plain.state_dict().keys() == other.state_dict().keys()
    merged, expected = (it.model.merge_and_unload(safe_merge=True).state_dict() for it in (other, plain))
    assert all(tensor.equal(expected[name]) for name, tensor in merged.items())
