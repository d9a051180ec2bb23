import pytest

from finetune.model.base import Base
from finetune.model.lora import TowerLora

from .runs import adapt, train_head, write_run


@pytest.fixture(scope="session")
def base(tiny) -> Base:
    return Base.open(tiny)


@pytest.fixture(scope="session")
def run(base, batch, tmp_path_factory):
    """Adapters in both towers beside layers trained whole and statistics that followed."""
    image_lora = TowerLora(rank=2, whole=["depthwise", "norm"], train_statistics=True)
    towers = adapt(base, image_lora, TowerLora(rank=2, whole=["norm"]))
    return write_run(tmp_path_factory.mktemp("run"), base, towers, batch)


@pytest.fixture(scope="session")
def text_run(base, batch, tmp_path_factory):
    """Adapters in the text tower alone."""
    return write_run(tmp_path_factory.mktemp("text"), base, adapt(base, None, TowerLora(rank=2)), batch)


@pytest.fixture(scope="session")
def head_run(base, batch, tmp_path_factory):
    """Adapters in the image tower, and a head on it."""
    towers = adapt(base, TowerLora(rank=2), None)
    return write_run(tmp_path_factory.mktemp("head"), base, towers, batch, train_head(towers, batch))
