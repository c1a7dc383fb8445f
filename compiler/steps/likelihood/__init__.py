"""Losses that are cross-entropies: how unlikely labels, tokens and turns are under a softmax."""
