"""Environments. Gymnasium is imported in this package only."""
