"""Dreamers: they train the world model and imagine with it."""

if __name__ != "dreamfleet.dreamer_workers":
    raise ImportError("this folder is imported as dreamfleet.dreamer_workers")
