"""Those that act: actors fill the replay, the evaluator only measures."""

if __name__ != "dreamfleet.actors":
    raise ImportError("this folder is imported as dreamfleet.actors")
