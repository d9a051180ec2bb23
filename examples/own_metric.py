"""A metric of my own: F1 of each class, by scikit-learn, from what a run says of each row. First: `classes.py`."""

from sklearn.metrics import classification_report

from finetune import measure_run

rows = measure_run("runs/classes").measurement.predictions
print(classification_report(rows["label"], rows["prediction"]))
