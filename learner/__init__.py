"""The learner, and the weight store from which other processes pull its weights."""

if __name__ != "dreamfleet.learner":
    raise ImportError("this folder is imported as dreamfleet.learner")
