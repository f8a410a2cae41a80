"""Workers that act in environments: actors fill the replay, and the evaluator measures returns."""

if __name__ != "dreamfleet.actors":
    raise ImportError("this folder is imported as dreamfleet.actors")
