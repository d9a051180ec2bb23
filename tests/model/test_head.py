"""A head answers as the formula says, keeps its start, and comes back from its file as it was."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finetune.core.errors import CheckpointError, RecipeError, TableError
from finetune.core.interpolation import Interpolation
from finetune.model.head import LinearHead, require_classes

CLASSES = ("cat", "dog", "Käse", "emu", "fox")


@pytest.fixture
def head() -> LinearHead:
    """A head that has moved away from its start."""
    random = torch.Generator().manual_seed(3)
    weights, biases = torch.randn(2, 5, 16, generator=random), torch.randn(2, 5, generator=random)
    return LinearHead(weights[0], biases[0], CLASSES, False, weights[1], biases[1])


@pytest.fixture
def features() -> torch.Tensor:
    return 7 * torch.randn(9, 16, generator=torch.Generator().manual_seed(4))


def test_logits_are_those_of_the_formula(head, features):
    weight, bias = (tensor.detach().double().numpy() for tensor in (head.weight, head.bias))
    expected = features.double().numpy() @ weight.T + bias
    np.testing.assert_allclose(head(features).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_logits_are_computed_in_float32(head, features):
    half = features.bfloat16()
    expected = head(half.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(half).equal(expected)
    assert head(half).equal(expected)
    assert head(features.double()).dtype == torch.float64
    halved = LinearHead(head.weight, head.bias, CLASSES).bfloat16()
    assert halved(half).dtype == torch.float32


def test_start_is_kept_while_the_head_is_trained(features):
    head = LinearHead(torch.randn(5, 16), torch.randn(5), CLASSES)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    torch.nn.functional.cross_entropy(head(features), torch.arange(9) % 5).backward()
    optimizer.step()
    assert head.start_weight.equal(weight)
    assert head.start_bias.equal(bias)
    assert not head.weight.equal(weight)
    assert not head.bias.equal(bias)


def test_tensors_are_the_heads_own(head, features):
    """Training it changes neither what it was made of nor a head that was made of it."""
    weight, bias = torch.ones(5, 16), torch.ones(5)
    made, before = LinearHead(weight, bias, CLASSES), head(features)
    for tensor in (*made.parameters(), *made.buffers()):
        tensor.data += 1
    assert weight.equal(torch.ones(5, 16))
    assert bias.equal(torch.ones(5))
    for tensor in (*head.at(1.0).parameters(), *head.at(0.0).parameters()):
        tensor.data += 1
    assert head(features).equal(before)


def test_state_is_the_head_and_its_start(head):
    assert list(head.state_dict()) == ["weight", "bias", "start_weight", "start_bias"]
    assert [name for name, _ in head.named_parameters()] == ["weight", "bias"]


def test_ends_of_a_head_are_its_start_and_itself(head, features):
    assert head.at(1.0).weight.equal(head.weight)
    assert head.at(1.0).bias.equal(head.bias)
    start = head.at(0.0, scale=7.0)
    assert start.weight.equal(7 * head.start_weight)
    assert start.bias.equal(7 * head.start_bias)
    assert start.start_weight.equal(start.weight)
    assert not head(features).argsort(dim=1).equal(start(features).argsort(dim=1))


def test_between_them_logits_are_averages(head, features):
    """A head is linear in its tensors: what it says between the ends lies between what they say."""
    start, end = (head.at(weight)(features).double() for weight in (0.0, 1.0))
    for weight in (0.25, 0.6):
        expected = 3 * ((1 - weight) * start + weight * end)
        torch.testing.assert_close(head.at(weight, scale=3.0)(features).double(), expected, rtol=1e-4, atol=1e-4)
    assert head.at(0.5).classes == CLASSES
    assert LinearHead(torch.ones(1, 2), torch.ones(1), ["one"], is_multilabel=True).at(0.5).is_multilabel
    with pytest.raises(RecipeError, match=r"Expected interpolation to be in \[0, 1\], but got 1\.5"):
        head.at(1.5)


def test_of_a_profile_the_last_weight_of_the_image_tower_counts(head):
    found = head.at(Interpolation(image=(1.0, 0.25), text=(0.5, 0.75)), scale=3.0)
    assert found.weight.equal(head.at(0.25, scale=3.0).weight)
    assert found.bias.equal(head.at(0.25, scale=3.0).bias)


@pytest.mark.parametrize("is_multilabel", [False, True])
def test_file_holds_the_head(head, tmp_path, is_multilabel):
    head = LinearHead(head.weight, head.bias, CLASSES, is_multilabel, head.start_weight, head.start_bias)
    path = tmp_path / "run" / "head.safetensors"
    head.write(path)
    again = LinearHead.read(path)
    assert (again.classes, again.is_multilabel) == (CLASSES, is_multilabel)
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in head.state_dict().items())
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == {"weight", "bias", "start_weight", "start_bias"}
        assert file.metadata().keys() == {"head"}
        assert "Käse" in file.metadata()["head"]
    assert [found.name for found in path.parent.iterdir()] == ["head.safetensors"]


def test_file_is_written_in_float32(head, tmp_path):
    head.bfloat16().write(tmp_path / "head.safetensors")
    assert {tensor.dtype for tensor in load_file(tmp_path / "head.safetensors").values()} == {torch.float32}


def test_refuses_a_file_that_is_missing_or_holds_no_head(head, tmp_path):
    path = tmp_path / "head.safetensors"
    with pytest.raises(CheckpointError, match="hold a trained head, but got"):
        LinearHead.read(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="hold a trained head, but got"):
        LinearHead.read(path)
    save_file(head.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"hold a trained head, but got.*Run it again\."):
        LinearHead.read(path)
    metadata = {"head": '{"classes": ["cat", "dog"], "is_multilabel": false}'}
    save_file(head.state_dict(), path, metadata)
    with pytest.raises(CheckpointError, match="hold a trained head, but got: Expected weights of shape"):
        LinearHead.read(path)


@pytest.mark.parametrize(
    ("weight", "bias", "start_weight"),
    [((5, 16), (5,), (5, 15)), ((5, 16), (4,), (5, 16)), ((4, 16), (4,), (4, 16)), ((16,), (5,), (16,))],
)
def test_refuses_shapes_that_do_not_fit(weight, bias, start_weight):
    message = r"Expected weights of shape \(5, D\) and biases of shape \(5,\) for 5 classes, but got \("
    with pytest.raises(ValueError, match=message):
        LinearHead(torch.zeros(weight), torch.zeros(bias), CLASSES, start_weight=torch.zeros(start_weight))


def test_refuses_a_table_of_other_classes():
    require_classes(CLASSES, list(CLASSES))
    with pytest.raises(TableError, match=r"the classifier's 2 classes, a, b, but got 2: b, a\. Take a table with"):
        require_classes(["a", "b"], ["b", "a"])
    with pytest.raises(TableError, match=r"the classifier's 1 classes, a, but got none\. Take a table with the labels"):
        require_classes(["a"], [])
    with pytest.raises(
        TableError, match=r"the classifier's 6 classes, a, b, c, d, e, \.\.\., but got 6: a, b, c, d, e\."
    ):
        require_classes("abcdef", "abcdeg")
