"""The foundation of all other parts: data types, protocols, configuration, metrics, checkpoints."""
