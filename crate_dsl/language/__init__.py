"""The language: text, its tree, and what is wrong with it. Knows nothing of networks."""
