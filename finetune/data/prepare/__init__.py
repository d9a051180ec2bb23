"""One sample: an image as pixels, a text as token ids."""
