"""The gradient flow of the coding rate, integrated."""
