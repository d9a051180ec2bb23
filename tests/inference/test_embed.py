"""The one loop says what a plain loop over plain transformers says, in the order in which it was asked."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AlignModel

from finetune.core.errors import RecipeError
from finetune.core.types import Batch, ClassPrompts, Embeddings, Texts
from finetune.inference.embed import class_embeddings, embed, embed_classes, embed_texts, find_device
from finetune.inference.models import TwoTowers
from finetune.model.base import Base
from finetune.model.towers import AlignTowers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def towers(tiny) -> AlignTowers:
    return AlignTowers(Base.open(tiny).load())


@pytest.fixture(scope="module")
def plain(tiny) -> AlignModel:
    return AlignModel.from_pretrained(tiny).eval()


def cut(batch: Batch, *sizes: int) -> list[Batch]:
    """A batch in pieces."""
    return [Batch(*parts) for parts in zip(*(field.split(sizes) for field in batch), strict=True)]


def make_texts(count: int) -> Texts:
    random = torch.Generator().manual_seed(count)
    mask = (torch.arange(8) < torch.randint(3, 9, (count, 1), generator=random)).long()
    return Texts(torch.randint(1000, 2000, (count, 8), generator=random) * mask, mask)


@torch.no_grad()
def test_features_are_those_of_a_plain_loop(towers, plain, batch):
    """One row at a time without padding, against batches of four, one and one."""
    images, texts = [], []
    for pixels, ids, mask in zip(batch.pixel_values, batch.input_ids, batch.attention_mask, strict=True):
        length = int(mask.sum())
        images.append(plain.get_image_features(pixel_values=pixels[None]).pooler_output)
        texts.append(plain.get_text_features(input_ids=ids[None, :length]).pooler_output)
    found = embed(TwoTowers(towers), cut(batch, 4, 1, 1), CPU)
    torch.testing.assert_close(found.image_features, torch.cat(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.text_features, torch.cat(texts), rtol=1e-4, atol=1e-4)
    assert found.class_scores is None


def test_answers_are_in_the_order_of_the_batches(towers, batch):
    whole = embed(TwoTowers(towers), [batch], CPU)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = Batch(*(field[order] for field in batch))
    found = embed(TwoTowers(towers), iter(cut(shuffled, 2, 3, 1)), CPU)  # an iterator has no length
    assert found.rows.tolist() == found.image_ids.tolist() == order
    torch.testing.assert_close(found.image_features, whole.image_features[order])
    torch.testing.assert_close(found.text_features, whole.text_features[order])


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_that_was_not_asked_stays_none_and_the_temperature_a_number(towers, batch, tower):
    batches = cut(batch, 4, 2)
    if tower == "text":
        batches = [Texts(part.input_ids, part.attention_mask) for part in batches]
    found = embed(towers.image_embeddings if tower == "image" else towers.text_embeddings, batches, CPU)
    assert isinstance(found, Embeddings)
    asked, other = (found.image_features, found.text_features)[:: 1 if tower == "image" else -1]
    assert asked.shape == (6, 64)
    assert other is None
    assert found.temperature.shape == ()
    assert found.temperature.equal(towers.temperature)


class Mixed(NamedTuple):
    half: Tensor
    count: Tensor
    flag: Tensor
    nothing: Tensor | None
    scalar: Tensor


def test_numbers_come_back_in_float32_or_whole():
    """Half precision is widened, whole numbers and truth values stay, of a scalar the first batch speaks."""

    def answer(asked: Texts) -> Mixed:
        ids = asked.input_ids[:, 0]
        return Mixed(ids.bfloat16(), ids, ids > 2, None, ids.sum().double())

    batches = [Texts(torch.tensor([[1], [2]]), torch.ones(2, 1)), Texts(torch.tensor([[3]]), torch.ones(1, 1))]
    found = embed(answer, batches, CPU)
    assert (found.half.dtype, found.half.tolist()) == (torch.float32, [1, 2, 3])
    assert (found.count.dtype, found.count.tolist()) == (torch.int64, [1, 2, 3])
    assert (found.flag.dtype, found.flag.tolist()) == (torch.bool, [False, False, True])
    assert found.nothing is None
    assert (found.scalar.dtype, found.scalar.item()) == (torch.float32, 3)


@pytest.mark.skipif(not torch.amp.is_autocast_available("cpu"), reason="no autocast on this processor")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_is_that_of_autocast(towers, plain, batch, dtype):
    """One row at a time, as convolutions in half precision may depend on the size of a batch."""
    found = embed(TwoTowers(towers), cut(batch, *[1] * 6), CPU, dtype)
    exact = embed(TwoTowers(towers), cut(batch, *[1] * 6), CPU)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        images = [plain.get_image_features(pixel_values=row.pixel_values).pooler_output for row in cut(batch, *[1] * 6)]
        texts = [plain.get_text_features(*row[1:3]).pooler_output for row in cut(batch, *[1] * 6)]
    assert texts[0].dtype == dtype
    assert found.image_features.dtype == found.text_features.dtype == torch.float32
    assert found.image_features.equal(torch.cat(images).float())
    assert found.text_features.equal(torch.cat(texts).float())
    assert not found.text_features.equal(exact.text_features)


def test_no_gradient_is_kept_and_the_model_stays_as_it_is(towers, batch):
    before = {name: tensor.clone() for name, tensor in towers.state_dict().items()}
    modes = [module.training for module in towers.modules()]
    assert towers.temperature.requires_grad is False
    needs = {name for name, parameter in towers.named_parameters() if parameter.requires_grad}
    assert needs
    found = embed(TwoTowers(towers), cut(batch, 4, 2), CPU)
    assert not found.image_features.requires_grad
    assert needs == {name for name, parameter in towers.named_parameters() if parameter.requires_grad}
    assert modes == [module.training for module in towers.modules()]
    assert all(tensor.equal(before[name]) for name, tensor in towers.state_dict().items())
    assert torch.is_grad_enabled()


def test_nothing_to_embed_is_refused(towers):
    with pytest.raises(ValueError, match=r"Expected at least one batch to embed, but got none\."):
        embed(TwoTowers(towers), [], CPU)


def test_a_bar_is_shown_on_a_terminal_alone(towers, batch, capfd):
    embed(TwoTowers(towers), cut(batch, 4, 2), CPU, progress="test")
    assert capfd.readouterr().err == ""


@torch.no_grad()
def test_texts_are_unit_vectors_and_embedded_in_batches(towers, plain):
    texts, sizes = make_texts(600), []
    hook = towers.align.text_model.register_forward_hook(lambda *of: sizes.append(len(of[2][0])))
    found = embed_texts(towers, texts, CPU)
    hook.remove()
    assert sizes == [256, 256, 88]
    expected = plain.get_text_features(*texts).pooler_output
    torch.testing.assert_close(found, normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_class_is_the_mean_of_its_prompts_on_the_sphere(towers, plain):
    texts = make_texts(6)
    label_ids = torch.tensor([0, 0, 1, 1, 2, 2])
    found = embed_classes(towers, ClassPrompts(("a", "b", "c"), *texts, label_ids), CPU)
    units = normalize(plain.get_text_features(*texts).pooler_output, dim=-1).double()
    expected = torch.stack([units[label_ids == label].mean(dim=0) for label in range(3)])
    expected = (expected / expected.norm(dim=-1, keepdim=True)).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_devices_are_those_of_this_machine():
    fastest = torch.accelerator.current_accelerator(check_available=True)
    assert find_device("cpu") == CPU
    assert find_device() == find_device("auto") == (fastest or CPU)
    with pytest.raises(RecipeError, match=r"trainer\.accelerator to be one of this machine, but got 'tpu'\. Set it to"):
        find_device("tpu")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_an_accelerator_that_is_not_there_is_refused(accelerator):
    with pytest.raises(RecipeError, match=rf"but got '{accelerator}'\. Set it to auto, or to one of: cpu\.$"):
        find_device(accelerator)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_an_accelerator_answers_as_the_processor_does(tiny, batch):
    device = find_device("gpu")
    asked = []
    there = AlignTowers(Base.open(tiny).load()).to(device)
    there.align.vision_model.register_forward_hook(lambda *of: asked.append(of[1][0].device.type))
    found = embed(TwoTowers(there), cut(batch, 4, 2), device)
    expected = embed(TwoTowers(there).to(CPU), cut(batch, 4, 2), CPU)
    assert asked[:2] == [device.type] * 2
    assert {field.device for field in found if field is not None} == {CPU}
    torch.testing.assert_close(found.image_features, expected.image_features, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.text_features, expected.text_features, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_class_embeddings_equal_a_loop(dtype):
    random = torch.Generator().manual_seed(0)
    prompts = (torch.randn(12, 5, generator=random) * 9).to(dtype)
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 2, 0, 1, 1, 3])
    embeds = class_embeddings(prompts, labels)
    assert embeds.dtype == torch.float32
    for label in range(4):
        own = prompts[labels == label].double().numpy()
        mean = (own / np.linalg.norm(own, axis=1, keepdims=True)).mean(0)
        np.testing.assert_allclose(embeds[label].numpy(), mean / np.linalg.norm(mean), atol=1e-6)


def test_class_embeddings_refuse_a_class_without_prompts():
    with pytest.raises(ValueError, match=r"Expected a prompt for each class, but got none for class 1\."):
        class_embeddings(torch.eye(2), torch.tensor([0, 2]))
