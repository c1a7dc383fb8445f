"""Affine maps in fewer bits: what `--precision` makes of the compiler's parts."""
