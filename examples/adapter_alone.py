"""An adapter without this library: `adapter_alone.py runs/retrieval/adapter BASE IMAGE`. First: `retrieval.py`."""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from transformers import AlignModel, AlignProcessor

adapter, base, image = Path(sys.argv[1]), sys.argv[2], Image.open(sys.argv[3]).convert("RGB")
model = PeftModel.from_pretrained(AlignModel.from_pretrained(base), str(adapter))
temperature = json.loads((adapter / "temperature.json").read_text())["temperature"]
model.get_base_model().get_parameter("temperature").data.fill_(temperature)  # which PEFT does not keep
processor = AlignProcessor.from_pretrained(adapter, backend="pil")
texts = ["a handwritten digit zero", "a handwritten digit one"]
inputs = processor(images=image, text=texts, truncation=True, return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits_per_image.softmax(dim=1).tolist())
