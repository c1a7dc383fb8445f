"""Embedding of whole numbers, and linear weights used the other way."""
