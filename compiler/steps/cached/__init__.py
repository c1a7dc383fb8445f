"""Steps for the next tokens alone, given what is held of those before: what a network with a cache consists of."""
