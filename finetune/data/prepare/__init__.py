"""Prepares one sample as the checkpoint's processor does: an image file becomes pixels, a text becomes token ids.

Other folders use `open_image` and `ImagePreparation` (`prepare.images`), `TextEncoder` and `write_prompts`
(`prepare.texts`), and `place_of` (`prepare.members`).
"""
