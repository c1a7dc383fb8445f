"""Plain multi-head attention, for baselines."""
