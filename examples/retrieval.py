"""Retrieval on my captions: an adapter on both towers, measured before and after. First: `finetune prepare digits`."""

from finetune import read_recipe, run_recipe

values = {
    "model.checkpoint": "align-mini",
    "data.table": {"path": "data/digits/digits.csv", "caption": "caption", "split": "split"},
    "data.image_size": 64,
    "data.batch_size": 32,
    "trainer.max_epochs": 2,
    "run": {"name": "retrieval", "soup": 1},
}
run = run_recipe(read_recipe("retrieval_lora", values), overwrite=True)
print(run.read_results().loc[["test/text_to_image/R@1", "test/image_to_text/R@1"]])
