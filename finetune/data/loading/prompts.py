"""Class prompts: every class name in every template, as token ids."""

from collections.abc import Sequence

import torch

from finetune.core.types import ClassPrompts
from finetune.data.prepare.texts import TextEncoder, write_prompts


def encode_prompts(classes: Sequence[str], texts: TextEncoder, templates: Sequence[str]) -> ClassPrompts:
    """Returns every class name in every template.

    Args:
        classes: The names, one or more.
        texts: Encodes as the model's tokenizer does.
        templates: Sentences with `{}` once, where the name goes.

    Raises:
        RecipeError: If a template does not hold `{}` exactly once.
    """
    encoded = [texts.encode(text) for text in write_prompts(classes, templates)]
    input_ids, attention_mask = map(torch.as_tensor, texts.pad(encoded))
    label_ids = torch.arange(len(classes)).repeat_interleave(len(templates))
    return ClassPrompts(tuple(classes), input_ids, attention_mask, label_ids)
