"""Two models on the same rows, with intervals: the base and a run. First: `retrieval.py`."""

from finetune import compare_models, measure_checkpoint, read_recipe

recipe = read_recipe("runs/retrieval/recipe.yaml")
measure_checkpoint(recipe, output="base", overwrite=True)
print("\n".join(compare_models(["base", "runs/retrieval"]).lines()))
