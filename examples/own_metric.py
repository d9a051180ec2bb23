"""A metric of my own: F1 of each class, from what a run says of each test row. First: `classes.py`."""

from finetune import measure_run

rows = measure_run("runs/classes").measurement.predictions
right = rows.loc[rows["label"] == rows["prediction"], "label"].value_counts()
counted = rows["label"].value_counts().add(rows["prediction"].value_counts(), fill_value=0)
print((2 * right / counted).fillna(0).round(2))
