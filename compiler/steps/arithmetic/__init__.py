"""Arithmetic on tensors, learned tensors and numbers."""
