"""Environments of gymnasium and of this package. Only this package imports gymnasium."""
