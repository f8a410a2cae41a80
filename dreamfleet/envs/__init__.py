"""Environments: the only home of gymnasium."""
