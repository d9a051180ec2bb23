"""A few shots of a rare class, from a DataFrame: five nines beside many digits. First: `finetune prepare digits`."""

import pandas as pd

from finetune import measure_run, read_recipe, run_recipe

frame = pd.read_csv("data/digits/digits.csv")
frame["image"] = "data/digits/" + frame["image"]
frame = frame.drop(frame[(frame["label"] == "nine") & (frame["split"] == "train")].index[5:])
values = {
    "model.checkpoint": "align-mini",
    "data.table": {"label": "label", "split": "split"},
    "data.table.path": frame,
    "data.image_size": 64,
    "data.sampling": {"class_path": "finetune.ClassBalanced"},
    "trainer.max_epochs": 2,
    "run": {"name": "rare", "soup": 1},
}
run = run_recipe(read_recipe("few_shot", values), overwrite=True)
found = measure_run(run).measurement.predictions.query("label == 'nine'")
print(f"{(found['prediction'] == 'nine').mean():.0%} of the nines are found")
