"""The authors' own PyTorch files as weights of a spec's network."""
