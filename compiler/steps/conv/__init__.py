"""Convolutions of pictures, and the normalisation of their channels: what a convolutional stem needs."""
