"""The only place that knows everything: recipes, and the stages of a run."""
