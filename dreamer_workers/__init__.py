"""Dreamers: workers that train the world model, and roll the policy out in it (dreams)."""

if __name__ != "dreamfleet.dreamer_workers":
    raise ImportError("this folder is imported as dreamfleet.dreamer_workers")
