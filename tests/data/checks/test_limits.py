"""Texts that are cut off, against an encoding of each of them alone."""

from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from finetune.data.checks.limits import find_long_texts
from finetune.data.prepare.texts import TextEncoder
from finetune.data.table.table import Table
from finetune.model.base import Base

WORDS = [
    "cat",
    "Z\u00fcrich",
    "na\u00efve",
    "42",
    "\U0001f408",
    "\u65e5\u672c",
    "\ud55c\uad6d\uc5b4",
    "don't",
    "\ufb03",
    "\u338f",
    "...",
]


def count_tokens(texts: TextEncoder, text: str) -> int:
    return len(texts.tokenizer(text, truncation=False, verbose=False)["input_ids"])


def test_cut_off_tokens_against_one_text_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    generator = np.random.default_rng(0)
    captions = [" ".join(generator.choice(WORDS, size)) for size in range(1, 70)]
    captions += ["".join(generator.choice(WORDS, size)) for size in range(1, 70)]
    captions += [f"{'cat  ' * size}{'q' * size}{size} [SEP]" for size in range(1, 70)]  # words that come once
    pd.DataFrame({"image": "a.png", "caption": captions}).to_csv(tmp_path / "t.csv", index=False)
    rows = Table(str(tmp_path / "t.csv"), caption="caption").read(required=())
    texts = TextEncoder.from_processor(Base.open("align-mini").processor())
    lost = {text: count_tokens(texts, text) - texts.max_length for text in captions}
    cut = [tokens for tokens in lost.values() if tokens > 0]
    assert 0 < len(cut) < len(lost)
    (concern,) = find_long_texts(rows, (), texts)
    message = f"{len(cut)} captions are longer than 64 tokens; {sum(cut):,} tokens are cut off: "
    assert concern.message.startswith(message)
    expected = [row + 2 for row, text in enumerate(captions) if lost[text] > 0]
    assert [int(place.rpartition(":")[2]) for place in concern.places] == expected


def test_tokenizers_of_other_rules_are_not_split_at_spaces(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    texts = TextEncoder.from_processor(Base.open("align-mini").processor())
    texts.tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex("."), "isolated")  # a space is a token
    captions = [f"{'b ' * size}{'d ' * size}c" for size in range(10, 30)]
    pd.DataFrame({"image": "a.png", "caption": captions}).to_csv(tmp_path / "t.csv", index=False)
    rows = Table(str(tmp_path / "t.csv"), caption="caption").read(required=())
    long = [text for text in rows.captions.tolist() if count_tokens(texts, text) > texts.max_length]
    assert 0 < len(long) < len(captions)
    (concern,) = find_long_texts(rows, (), texts)
    assert concern.message.startswith(f"{len(long)} captions are longer than 64 tokens")
