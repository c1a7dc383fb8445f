"""Rotary positions: what `positions = rotary` of `compress` and `attend` does to what is compared."""
