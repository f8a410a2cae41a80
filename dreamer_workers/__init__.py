"""Dreamers: they train the world model and imagine with it."""
