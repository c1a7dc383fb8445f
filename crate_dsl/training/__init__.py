"""Training: where images come from, what a recipe means, and the run from the first step to the exported network."""
