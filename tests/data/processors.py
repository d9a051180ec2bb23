"""The processors of two checkpoints, and others that differ from them in a setting each."""

from typing import Any

from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil


def align_base(**changes: Any) -> Any:
    settings = {
        "size": {"height": 346, "width": 346},
        "crop_size": {"height": 289, "width": 289},
        "resample": 2,
        "do_center_crop": True,
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "do_normalize": False,
        "include_top": False,
    }
    return EfficientNetImageProcessorPil(**settings | changes)


def align_mini(**changes: Any) -> Any:
    settings = {
        "size": {"height": 96, "width": 96},
        "crop_size": {"height": 96, "width": 96},
        "resample": 3,
        "do_center_crop": True,
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
        "rescale_offset": False,
        "include_top": False,
    }
    return EfficientNetImageProcessorPil(**settings | changes)


PROCESSORS = {
    "align-base": align_base(),
    "align-mini": align_mini(),
    "class defaults": EfficientNetImageProcessorPil(),
    "three channels, twice normalised": align_mini(
        image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4], include_top=True
    ),
    "crop beyond the border": align_base(size={"height": 200, "width": 301}, crop_size={"height": 289, "width": 224}),
    "odd margins": align_base(size={"height": 100, "width": 101}, crop_size={"height": 63, "width": 62}),
    "no resize": align_base(do_resize=False, crop_size={"height": 64, "width": 64}),
    "no crop": align_base(do_center_crop=False),
    "no arithmetic": align_base(do_rescale=False),
}
