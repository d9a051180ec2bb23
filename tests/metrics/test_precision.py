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


def settings() -> tuple[str, ...]:
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    return torch.get_float32_matmul_precision(), *(backend.fp32_precision for backend in backends)


@pytest.mark.usefixtures("lower_precision")
def test_the_precision_around_is_left_as_it_was():
    before = settings()
    with pytest.raises(KeyError), full_float32(torch.device("cpu")):
        assert settings() == ("highest", "ieee", "ieee")
        raise KeyError
    assert before == settings()


def test_so_is_the_setting_of_a_backend_alone():
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        with full_float32(torch.device("cpu")):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
