"""What all other parts build on: data types, protocols, configuration, metrics, checkpoints."""
