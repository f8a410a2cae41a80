"""The base of all other packages: data types, protocols, configuration, metrics and checkpoints."""
