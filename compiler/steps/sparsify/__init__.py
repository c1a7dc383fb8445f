"""Sparse coding of tokens in a learned dictionary."""
