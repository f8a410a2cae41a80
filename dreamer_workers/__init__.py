"""Dreamers: workers that train the world model and make dreams with it."""

if __name__ != "dreamfleet.dreamer_workers":
    raise ImportError("this folder is imported as dreamfleet.dreamer_workers")
