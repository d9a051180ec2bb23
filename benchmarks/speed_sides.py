"""The sides of the training-speed benchmark: each trains the same rows with the same adapters, in a process of its own.

`trainer` is a script with transformers' Trainer and PEFT as a user writes it at first: texts padded to the processor's
64 tokens, BatchNorm in train mode, images read in the main process, float32. `trainer-tuned` holds BatchNorm in
evaluation mode, pads texts to the longest of the batch and reads images in workers; `trainer-bf16` computes in bfloat16
as well. `bare` is a loop over batches that are decoded beforehand, with PEFT's adapters and nothing else, `bare-fused`
the same loop over the toolkit's model and objective, and `ours` the training of `finetune fit`; `ours-preserving` holds
the text tower to the base on other texts as well, and takes part where it is named.
"""

from speed_plain import BareSide, TrainerSide
from speed_side import Side
from speed_toolkit import BareFusedSide, OurPreservingSide, OurSide

SIDES: dict[str, type[Side]] = {
    "trainer": TrainerSide,
    "trainer-tuned": TrainerSide,
    "trainer-bf16": TrainerSide,
    "bare": BareSide,
    "bare-fused": BareFusedSide,
    "ours": OurSide,
    "ours-preserving": OurPreservingSide,
}
