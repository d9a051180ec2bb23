"""Texts that are equal to the model, against an encoding of each text alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from finetune.data.checks.equal_texts import find_equal_classes, number_texts
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.prepare.texts import TextEncoder
from finetune.data.table.table import Rows, Table
from finetune.model.base import Base
from finetune.objectives import positive_mask

from ..checked import about

WORDS = [
    "cat",
    "Cat",
    "CAT",
    "c\u00e2t",
    "\U0001f408",
    "\U0001f415",
    "cat.",
    "cat .",
    "[UNK]",
    "[SEP]",
    "ca",
    "t",
    "\u65e5",
    "\x07",
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.from_processor(Base.open("align-mini").processor())


def rows_of(folder: Path, captions: list[str], **columns: list[str]) -> Rows:
    (folder / "a.png").touch()
    frame = pd.DataFrame({"image": "a.png", "caption": captions, **columns})
    return Table(frame, caption="caption", images=str(folder)).read(required=())


def numbered(rows: Rows, encoder: TextEncoder) -> list[tuple[int, ...]]:
    """Returns for each row which rows have its number."""
    ids = number_texts(rows, encoder)
    return [tuple(np.flatnonzero(ids == own).tolist()) for own in ids]


def by_tokens(texts: list[str], encoder: TextEncoder) -> list[tuple[int, ...]]:
    tokens = [encoder.encode(text) for text in texts]
    return [tuple(at for at, other in enumerate(tokens) if other == own) for own in tokens]


def test_captions_that_are_equal_to_the_model_get_one_number(tmp_path: Path, encoder: TextEncoder) -> None:
    """In case, accents, spaces, words it does not know, special tokens, very long words, and once they are cut off."""
    generator = np.random.default_rng(0)
    captions = [" ".join(generator.choice(WORDS, size)) for size in generator.integers(1, 4, 300)]
    captions += [f"{'dog ' * 61}{end}" for end in ("Cat", "cat", "cat one", "cat two", "cow", "cow \U0001f408")]
    captions += [
        "q" * 101,
        "r" * 101,
        "\U0001f408\U0001f415",
        "a " + "q" * 150,
        "A " + "s" * 150,
        "q" * 60 + "Q" * 40,
        "q" * 100,
    ]
    found = numbered(rows_of(tmp_path, captions), encoder)
    assert found == by_tokens(captions, encoder)
    distinct = dict(zip(captions, found, strict=True))
    assert len({*distinct.values()}) < len(distinct)


def test_a_tokenizer_of_other_rules_is_asked_of_every_text(tmp_path: Path) -> None:
    encoder = TextEncoder.from_processor(Base.open("align-mini").processor())
    encoder.tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex("."), "isolated")  # a space is a word, too
    captions = ["cat", "Cat", "c\u00e2t", "ca t", "ca  t", "\U0001f408", "\U0001f415", "x"]
    assert numbered(rows_of(tmp_path, captions), encoder) == by_tokens(captions, encoder)


def test_captions_of_equal_tokens_are_told_and_are_one_text(colour_table: Path) -> None:
    texts = ["A cat", "a cat", "a dog", "a c\u00e2t", "\U0001f408", "\U0001f415"]
    frame = pd.DataFrame(
        {"image": [f"{at}.png" for at in range(6)], "caption": texts, "split": ["train"] * 4 + ["test"] * 2}
    )
    table = Table(frame, caption="caption", split="split", images=str(colour_table.parent))
    data = ImageTextDataModule(table, "align-mini", image_size=32, batch_size=6)
    (concern,) = data.find_limits()
    assert concern.message.startswith(
        "5 different captions are 2 texts to the model: 'A cat', 'a cat', 'a c\u00e2t' (read as 'a cat'); "
    )
    assert "'\U0001f408', '\U0001f415' (read as '[UNK]')" in concern.message
    assert concern.places == tuple(f"DataFrame:{row}" for row in (0, 1, 3, 4, 5))
    training = data.dataset("train")
    mask = positive_mask(training.collate(list(data.samples(training, range(4)))))
    assert mask.tolist() == [[at == own or 2 not in (at, own) for at in range(4)] for own in range(4)]
    (batch,) = data.test_dataloader()
    metric = data.kind.metric()
    metric.update(torch.eye(8)[:2], torch.ones(2, 8), batch.image_ids, batch.caption_ids)
    assert metric.compute()["image_to_text/R@1"] == 1.0  # there is one text, and it is true of both images


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (("cote", "c\u00f4te"), "cote"),
        (("\U0001f408", "\U0001f415"), "[UNK]"),
        (("Cat", "cat"), "cat"),
        (("ice  cream", "ice cream"), "ice cream"),
    ],
)
def test_classes_whose_prompts_are_equal_are_named(names: tuple[str, str], read: str, encoder: TextEncoder) -> None:
    (concern,) = find_equal_classes([*names, "dog"], ["a photo of a {}."], encoder)
    assert concern.message.startswith("2 classes have the prompts of another one, as the model reads them: ")
    assert all(repr(name) in concern.message for name in names)
    assert f"(read as {read!r})" in concern.message
    assert find_equal_classes(["dog", "cat", "cot"], ["a {}", "{}"], encoder) == []


def test_classes_that_one_of_the_templates_tells_apart_are_not_named(encoder: TextEncoder) -> None:
    cut = "very " * 63 + "{}"
    assert about(find_equal_classes(["cat", "dog"], [cut], encoder)) == ["equal_classes"]
    assert find_equal_classes(["cat", "dog"], [cut, "a {}"], encoder) == []
