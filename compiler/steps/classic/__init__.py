"""The everyday parts of networks: linear maps, activations, dropout, scaling."""
