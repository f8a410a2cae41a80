"""Environments of gymnasium and of this project. The rest of `dreamfleet` does not use gymnasium."""
