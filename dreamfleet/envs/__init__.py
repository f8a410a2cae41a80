"""Environments of gymnasium and of this project. No other part of `dreamfleet` imports gymnasium."""
