"""Comparison of two checkouts: whether a change made learning worse or changed any number."""
