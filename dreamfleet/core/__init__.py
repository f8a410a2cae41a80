"""The floor everything stands on: protocols, configuration, metrics, checkpoints, seeding."""
