"""Normalisation of each token."""
