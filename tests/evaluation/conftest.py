from collections.abc import Callable

import pandas as pd
import pytest
import torch

from finetune.evaluation.evaluate import Evaluation, evaluate
from finetune.inference.models import ask_towers
from finetune.model.base import Base
from finetune.model.towers import AlignTowers


@pytest.fixture
def towers(tiny) -> AlignTowers:
    """The untouched base's."""
    base = Base.open(tiny)
    return AlignTowers.of(base)


@pytest.fixture(scope="session")
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def ask(towers, cpu) -> Callable[..., tuple[Evaluation, pd.DataFrame]]:
    """Evaluates the base on a split of a table, as its kind asks, and says what it predicts."""

    def ask_rows(data, split="test"):
        metric = data.kind.metric()
        found = evaluate(ask_towers(towers, data.class_prompts), data.loader(split), metric, cpu)
        return found, data.kind.predictions(found.answers, metric)

    return ask_rows
