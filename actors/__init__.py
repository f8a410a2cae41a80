"""Workers that act in environments: actors, which fill the replay, and the evaluator."""

if __name__ != "dreamfleet.actors":
    raise ImportError("this folder is imported as dreamfleet.actors")
