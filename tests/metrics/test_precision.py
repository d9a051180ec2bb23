"""What is measured does not depend on the precision that a program trains in."""

import pytest
import torch

from finetune.metrics.knn import neighbour_votes
from finetune.metrics.precision import full_float32
from finetune.metrics.retrieval import Retrieval

FEATURES = torch.randn(300, 640, generator=torch.Generator().manual_seed(0))
OTHERS = FEATURES + 8 * torch.randn(300, 640, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["high", "medium"])
def lower_precision(request):
    """What Lightning advises on a GPU; a CPU with bfloat16 follows `medium` too, another ignores both."""
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision("highest")


def retrieve() -> dict[str, torch.Tensor]:
    metric, ids = Retrieval(), torch.arange(300)
    metric.update(FEATURES, OTHERS, ids, ids)
    return metric.compute()


def vote() -> torch.Tensor:
    queries, known = (torch.nn.functional.normalize(part, dim=-1) for part in (FEATURES, OTHERS))
    return neighbour_votes(queries, known, torch.arange(300) % 7, classes=7)


EXPECTED = {measure: measure() for measure in (retrieve, vote)}


@pytest.mark.usefixtures("lower_precision")
@pytest.mark.parametrize("measure", [retrieve, vote])
def test_a_lower_precision_changes_no_metric(measure):
    torch.testing.assert_close(measure(), EXPECTED[measure])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(measure(), EXPECTED[measure])


@pytest.mark.usefixtures("lower_precision")
def test_the_precision_around_is_left_as_it_was():
    before = torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(KeyError), full_float32(torch.device("cpu")):
        raise KeyError
    assert before == (torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision)
