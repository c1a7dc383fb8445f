"""Compression of tokens against K learned subspaces."""
