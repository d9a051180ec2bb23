"""Classes of my labels: a head on the image tower, then asked about an open image. First: `finetune prepare digits`."""

from PIL import Image

from finetune import classify, read_recipe, run_recipe

values = {
    "model.checkpoint": "align-mini",
    "data.table": {"path": "data/digits/digits.csv", "label": "label", "split": "split"},
    "data.image_size": 64,
    "trainer.max_epochs": 1,
    "run": {"name": "classes", "soup": 1},
}
run = run_recipe(read_recipe("classify_head", values), overwrite=True)
print(run.read_results().loc["test/accuracy"])
print(classify(run, Image.open("data/digits/images/0003.png")).rows.nlargest(3, "probability"))
