"""With recomputed blocks the image tower has the same loss and gradients, and keeps less."""

import copy
import io
from contextlib import nullcontext

import peft
import pytest
import torch
from safetensors.torch import load_file

from finetune.model.adapter import save_adapter
from finetune.model.base import Base
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.recompute import recompute_blocks
from finetune.model.towers import AlignTowers

from .kept import saved_bytes


@pytest.fixture(scope="module")
def pixel_values() -> torch.Tensor:
    return torch.randn(3, 3, 33, 33, generator=torch.Generator().manual_seed(3))


def build_towers(tiny: str, lora: TowerLora, recompute: bool) -> AlignTowers:
    torch.manual_seed(0)
    towers = AlignTowers(attach_lora(Base.open(tiny).load(), lora, None), True, 0.01)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in towers.parameters():
            if parameter.requires_grad and parameter.ndim:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    if recompute:
        recompute_blocks(towers.align.vision_model)
    return towers


def measure(towers: AlignTowers, pixel_values, autocast: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss, and gradients, buffers and random state after one step."""
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        loss = (towers.image_features(pixel_values).float() ** 2).mean()
    loss.backward()
    gradients = {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}
    assert gradients
    buffers = {name: buffer.clone() for name, buffer in towers.named_buffers()}
    return loss.detach(), gradients | buffers | {"random": torch.rand(3)}


def assert_equal(found, expected) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=0, msg=name)


LORAS = {
    "plain": TowerLora(rank=2),
    "dropout": TowerLora(rank=2, dropout=0.5),
    "last_blocks": TowerLora(rank=2, dropout=0.5, last_blocks=2),
    "dora": TowerLora(rank=2, use_dora=True),
    "stem": TowerLora(rank=2, layers=["stem", "squeeze_excite"]),
    "whole_following": TowerLora(rank=2, whole=["depthwise"], train_statistics=True),
}


def case(name, autocast, slow=False):
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(LORAS[name], autocast, id=f"{name}-{'bfloat16' if autocast else 'float32'}", marks=marks)


@pytest.mark.parametrize(
    ("lora", "autocast"),
    [case(name, autocast, slow=autocast and name != "dropout") for name in LORAS for autocast in (False, True)],
)
def test_loss_and_gradients_are_bit_equal(tiny, pixel_values, lora, autocast):
    plain, recomputed = (build_towers(tiny, lora, recompute) for recompute in (False, True))
    for towers in (plain, recomputed):
        for module in towers.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train()
    assert_equal(measure(recomputed, pixel_values, autocast), measure(plain, pixel_values, autocast))


def test_the_blocks_own_dropout_is_drawn_again(tiny, pixel_values):
    plain, recomputed = (build_towers(tiny, TowerLora(rank=2), recompute) for recompute in (False, True))
    losses = []
    for towers in (plain, recomputed):
        towers.align.vision_model.train()
        first = towers.align.vision_model.encoder.blocks[0].projection  # a residual block in all but name
        first.apply_dropout, first.dropout.p = True, 0.5
        losses.append(measure(towers, pixel_values))
    assert_equal(losses[1], losses[0])


@pytest.mark.parametrize("lora", [TowerLora(rank=2), TowerLora(rank=2, layers=["stem"])], ids=["all", "stem"])
def test_less_is_kept(tiny, pixel_values, lora):
    plain, recomputed = (saved_bytes(build_towers(tiny, lora, on), pixel_values) for on in (False, True))
    assert recomputed < plain / 3


def test_nothing_is_kept_before_the_first_adapter(tiny, pixel_values):
    towers = build_towers(tiny, TowerLora(rank=2, last_blocks=1), True)
    last = towers.align.vision_model.encoder.blocks[-1]
    inputs = []
    last.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    kept = saved_bytes(towers, pixel_values)
    assert not inputs[0].requires_grad
    assert kept < saved_bytes(build_towers(tiny, TowerLora(rank=2), True), pixel_values)


def test_without_gradients_nothing_is_computed_twice(tiny, pixel_values):
    towers = build_towers(tiny, TowerLora(rank=2), True)
    calls = []
    towers.align.vision_model.encoder.blocks[0].depthwise_conv.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        towers.image_features(pixel_values)
    with torch.inference_mode():
        towers.image_features(pixel_values)
    assert len(calls) == 2
    towers.image_features(pixel_values).sum().backward()
    assert len(calls) == 4


def test_hooks_of_a_block_run_once(tiny, pixel_values):
    towers = build_towers(tiny, TowerLora(rank=2), True)
    vision_model = towers.align.vision_model
    calls = []
    vision_model.encoder.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    output = vision_model(pixel_values, output_hidden_states=True)
    output.pooler_output.sum().backward()
    assert len(calls) == 1
    assert len(output.hidden_states) == len(vision_model.encoder.blocks) + 1


def test_statistics_in_training_mode_are_updated_once(tiny, pixel_values):
    """`AlignTowers` does not let it come to this; a tower of its own does."""
    found = []
    for recompute in (False, True):
        vision_model = Base.open(tiny).load().vision_model
        if recompute:
            recompute_blocks(vision_model)
        vision_model.train()
        torch.manual_seed(2)
        vision_model(pixel_values).pooler_output.square().mean().backward()
        norm = vision_model.encoder.blocks[0].depthwise_conv.depthwise_norm
        assert norm.momentum == 0.99
        gradients = {name: parameter.grad for name, parameter in vision_model.named_parameters()}
        found.append((torch.zeros(()), gradients | dict(vision_model.named_buffers())))
    assert_equal(found[1], found[0])


def test_statistics_stay_under_a_stray_train(tiny, pixel_values):
    towers = build_towers(tiny, TowerLora(rank=2), True)
    before = {name: buffer.clone() for name, buffer in towers.named_buffers()}
    towers.train()
    towers.image_features(pixel_values).sum().backward()
    for name, buffer in towers.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)


def test_names_stay_and_either_order_of_attaching_is_the_same(tiny, pixel_values):
    lora = TowerLora(rank=2, dropout=0.5)
    after = build_towers(tiny, lora, True)
    model = Base.open(tiny).load()
    names = [name for name, _ in model.named_modules()], list(model.state_dict())
    recompute_blocks(model.vision_model)
    assert ([name for name, _ in model.named_modules()], list(model.state_dict())) == names
    before = AlignTowers(attach_lora(model, lora, None), True, 0.01)
    before.load_state_dict(after.state_dict())
    assert_equal(measure(before, pixel_values), measure(after, pixel_values))


def test_copies_and_pickles_recompute_too(tiny, pixel_values):
    lora = TowerLora(rank=2, dropout=0.5)
    towers = build_towers(tiny, lora, True)
    file = io.BytesIO()
    torch.save(towers.align.vision_model, file)
    file.seek(0)
    pickled = copy.deepcopy(towers)
    pickled.align.vision_model = torch.load(file, weights_only=False)
    kept = saved_bytes(build_towers(tiny, lora, False), pixel_values)
    expected = measure(towers, pixel_values)
    for copied in (copy.deepcopy(build_towers(tiny, lora, True)), pickled):
        assert saved_bytes(copied, pixel_values) < kept / 2
        assert_equal(measure(copied, pixel_values), expected)


def test_adapter_is_saved_and_merged_as_without(tiny, tmp_path):
    lora = TowerLora(rank=2)
    merged = []
    for recompute in (False, True):
        towers = build_towers(tiny, lora, recompute)
        folder = tmp_path / str(recompute)
        folder.mkdir()
        save_adapter(towers.model, folder, Base.open(tiny))
        assert isinstance(towers.model, peft.PeftModel)
        merged.append(towers.model.merge_and_unload(safe_merge=True).state_dict())
    plain, recomputed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("False", "True"))
    for found, expected in ((recomputed, plain), (merged[1], merged[0])):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
