"""The card of an adapter's folder, which peft opens on top of the base."""

import json
from pathlib import Path

from finetune.export.cards import OPEN_IMAGE, Card, write_card
from finetune.export.facts import read_facts
from finetune.model.base import HUB_ID, Base
from finetune.run.folder import RunFolder


def write_adapter_card(folder: Path, run: RunFolder, base: Base) -> None:
    """Writes the card of an adapter. It says nothing of results: what a run measures are the folders it exports.

    Args:
        folder: The adapter's folder.
        run: The run that trained it, whose records of its data exist.
        base: The base.
    """
    write_card(folder, describe_adapter(run.adapter.name, base), run.path.resolve().name, {}, read_facts(run, base))


def describe_adapter(folder: str, base: Base) -> Card:
    """Returns the card of an adapter.

    Args:
        folder: The folder's name.
        base: What was adapted.
    """
    name = base.public_name
    hub_id = HUB_ID.fullmatch(name)
    opened = json.dumps(hub_id["name"] if hub_id else "BASE")
    revision = f", revision={json.dumps(hub_id['revision'])}" if hub_id and hub_id["revision"] else ""
    told = "" if hub_id else f"  # the folder of {name}, whose fingerprint is in temperature.json"
    return Card(
        base_model=name,
        pipeline_tag="zero-shot-image-classification",
        tags=("align", "lora"),
        summary=f"Adapters of `{name}`, fine-tuned by align-finetune, as peft reads them.",
        proof="The merged checkpoint of the same run is proven and measured; this folder is what it was merged from, "
        "before any interpolation and at the temperature that was trained.",
        use="To be put into its base, and into none else: classification of images by words, and search for images by "
        "texts or for texts by images, in the domain of the training data.",
        limits=("Texts longer than the tokenizer's limit are cut off.",),
        library="peft",
        relation="adapter",
        code=f"""import json
from pathlib import Path

from peft import PeftModel
from PIL import Image, ImageOps
from transformers import AlignModel, AlignProcessor

{OPEN_IMAGE}
base = {opened}{told}
folder = Path({json.dumps(folder)})  # of the hub: huggingface_hub.snapshot_download(NAME)
model = PeftModel.from_pretrained(AlignModel.from_pretrained(base{revision}), folder)
temperature = json.loads((folder / "temperature.json").read_text())["temperature"]
model.get_base_model().temperature.data.fill_(temperature)
processor = AlignProcessor.from_pretrained(folder, backend="pil")
labels = ["an image of a cat", "an image of a dog"]
inputs = processor(images=open_image("photo.png"), text=labels, truncation=True, return_tensors="pt")
probabilities = model(**inputs).logits_per_image.softmax(dim=1)
""",
    )
