"""Shows training rows as the model gets them, in a picture or a page: `write_preview` (`preview.preview`)."""
