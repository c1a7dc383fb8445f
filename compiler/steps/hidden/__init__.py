"""Completion: tokens hidden, tokens taken by index, and tokens put back in their places."""
