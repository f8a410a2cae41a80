"""Environments of gymnasium and of this project. Nothing else in `dreamfleet` imports gymnasium."""
