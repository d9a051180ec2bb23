"""What a processor itself makes of pixels that were resized and cropped before."""

import torch


def scaled(pixel_values, image_processor) -> torch.Tensor:
    images = [image.permute(1, 2, 0).numpy() for image in pixel_values]
    return image_processor(images, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
