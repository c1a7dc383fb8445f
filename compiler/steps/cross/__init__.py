"""Tokens that attend to other tokens: the white-box step, and the black-box one beside it."""
