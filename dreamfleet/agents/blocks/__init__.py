"""Building blocks that several agents share: networks, distributions, returns, optimizers."""
