"""Segments of the token axis: put before and after, taken by name, pooled."""
