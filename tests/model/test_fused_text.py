"""The text tower's training step has the loss and the gradients of the plain tower."""

import copy

import pytest
import torch
from torch.nn.functional import normalize
from transformers.models.align.modeling_align import AlignTextSelfAttention

from finetune.model.fused_text import fuse_text_layers
from finetune.model.lora import TowerLora
from finetune.model.towers import AlignTowers

from .pairs import build_moved

EVERY_LAYER = ["attention", "feed_forward", "projection", "embedding"]
KINDS = {
    "lora": TowerLora(rank=2),
    "every kind of layer": TowerLora(rank=3, layers=EVERY_LAYER),
    "attention alone": TowerLora(rank=2, layers=["query", "value"]),
    "rsLoRA": TowerLora(rank=4, use_rslora=True),
    "DoRA": TowerLora(rank=2, use_dora=True),
    "last block": TowerLora(rank=2, last_blocks=1),
    "norms whole": TowerLora(rank=2, whole=["norm"]),
    "attention whole": TowerLora(rank=2, layers=["feed_forward"], whole=["attention"]),
    "all whole": TowerLora(layers=[], whole=["all"]),
}


def build_pair(checkpoint: str, lora: TowerLora | None) -> tuple[AlignTowers, AlignTowers]:
    """The same towers twice, all that is trained moved away from its start: plain and fused."""
    plain = build_moved(checkpoint, None, lora)
    both = plain, copy.deepcopy(plain)
    fuse_text_layers(both[1].align.text_model, both[1].align.text_projection)
    return both


def build_exact_pair(checkpoint: str, lora: TowerLora | None) -> list[AlignTowers]:
    """In double precision. ALIGN's own attention takes the softmax in single precision, that of torch does not."""
    both = [towers.double() for towers in build_pair(checkpoint, lora)]
    both[0].align.text_model.config._attn_implementation = "sdpa"
    for module in both[0].align.text_model.modules():
        if isinstance(module, AlignTextSelfAttention):
            module.config._attn_implementation = "sdpa"  # PEFT's copies have a configuration of their own
            module.is_causal = False  # what transformers asks where no text has padding
    return both


def draw_texts(lengths: list[int], side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of these lengths; the last is the first one's repetition if it has its length."""
    ids = torch.randint(1, 60, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(3))
    if lengths[-1] == lengths[0]:
        ids[-1] = ids[0]
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    if side == "left":
        mask = mask.flip(1)
    return ids * mask, mask


def measure(towers: AlignTowers, texts: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The features, the loss, and each gradient."""
    torch.manual_seed(2)
    features = towers.text_features(*texts)
    loss = (normalize(features) @ torch.randn(features.shape[1]).to(features) * torch.arange(len(features))).logsumexp(
        0
    )
    loss.backward()
    found = {name: parameter.grad for name, parameter in towers.named_parameters() if parameter.grad is not None}
    return {name: tensor.double() for name, tensor in {**found, "features": features.detach()}.items()}


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    # What a frozen copy of a layer, or a token that does not occur, gets is nothing or zeros. Of a gradient that
    # cancels out, rounding is left, and processors round differently.
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= tolerance * (tensor.norm() + 1e-2), name


LENGTHS = [3, 9, 1, 5, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_gradients_are_those_of_plain_peft(tiny, kind):
    plain, other = (measure(it, draw_texts(LENGTHS)) for it in build_exact_pair(tiny, KINDS[kind]))
    assert len(plain) > 2
    assert_near(other, plain, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_in_single_precision_they_are_as_near_to_the_truth_as_plain_peft(tiny, kind):
    pair, texts = build_pair(tiny, KINDS[kind]), draw_texts(LENGTHS)
    exact = measure(copy.deepcopy(pair[0]).double(), texts)
    plain, other = (measure(it, texts) for it in pair)
    for name, tensor in exact.items():
        allowed = max(1e-5 * tensor.norm(), 10 * (plain[name] - tensor).norm())
        assert (other[name] - tensor).norm() <= allowed, name


@pytest.mark.parametrize("lengths", [[4], [1, 1], [7, 7, 7], [2, 6, 4]])
@pytest.mark.parametrize("side", ["right", "left"])
def test_any_lengths_and_either_side_of_padding(tiny, lengths, side):
    plain, other = (measure(it, draw_texts(lengths, side)) for it in build_exact_pair(tiny, TowerLora(rank=2)))
    assert_near(other, plain, 1e-12)


def count_rows(towers: AlignTowers, texts: tuple[torch.Tensor, torch.Tensor]) -> list[int]:
    """How many tokens each layer's feed-forward network computes."""
    found = []
    for layer in towers.align.text_model.encoder.layer:
        layer.intermediate.register_forward_hook(lambda _, given, __: found.append(given[0].shape[:-1].numel()))
    towers.text_features(*texts)
    return found


def test_no_padding_no_repeated_text_and_at_last_no_token_but_the_first(tiny):
    plain, other = build_pair(tiny, TowerLora(rank=2))
    *inner, last = count_rows(other, draw_texts(LENGTHS))
    assert set(inner) == {3 + 9 + 1 + 5}
    assert last == 4
    assert set(count_rows(plain, draw_texts(LENGTHS))) == {5 * 9}


def test_repeated_texts_draw_a_noise_each_where_adapters_have_dropout(tiny):
    _, other = build_pair(tiny, TowerLora(rank=2, dropout=0.5))
    features = other.train().text_features(*draw_texts([3, 3]))
    assert not torch.equal(features[0], features[1])


def test_dropout_of_the_tower_itself_is_left_to_it(tiny):
    plain, other = (it.train() for it in build_pair(tiny, TowerLora(rank=2)))
    expected = measure(plain, draw_texts(LENGTHS))
    assert all(tensor.equal(expected[name]) for name, tensor in measure(other, draw_texts(LENGTHS)).items())


def test_without_a_graph_the_tower_computes_as_before(tiny):
    """So evaluation, witness and proof do not depend on it, to the bit."""
    plain, other = build_pair(tiny, TowerLora(rank=2))
    texts = draw_texts(LENGTHS)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(plain.text_features(*texts), other.text_features(*texts))
            states = other.align.text_model(*texts).last_hidden_state
            assert torch.equal(states, plain.align.text_model(*texts).last_hidden_state)


def test_below_the_first_adapter_there_is_no_graph(tiny):
    _, other = build_pair(tiny, TowerLora(rank=2, last_blocks=1))
    needed = []
    for layer in other.align.text_model.encoder.layer:
        layer.register_forward_hook(lambda _, __, output: needed.append(output.requires_grad))
    other.text_features(*draw_texts(LENGTHS))
    assert needed == [False] * (len(needed) - 1) + [True]


def test_autocast_rounds_the_fused_tower_no_more_than_the_plain_one(tiny):
    plain, other = build_pair(tiny, TowerLora(rank=2))
    texts = draw_texts(LENGTHS)
    exact = plain.text_features(*texts)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, found = (it.text_features(*texts).float() for it in (plain, other))
    assert (found - exact).norm() <= 1.5 * (rounded - exact).norm()


def test_names_and_tensors_stay_as_they_were(tiny):
    plain, other = build_pair(tiny, TowerLora(rank=2))
    assert plain.state_dict().keys() == other.state_dict().keys()
    merged, expected = (it.model.merge_and_unload(safe_merge=True).state_dict() for it in (other, plain))
    assert all(tensor.equal(expected[name]) for name, tensor in merged.items())
