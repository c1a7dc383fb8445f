"""Losses that compare features without labels: of views of one sample, and of the samples of a batch."""
