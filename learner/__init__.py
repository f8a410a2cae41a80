"""The learner, and the store from which other processes pull weights."""

if __name__ != "dreamfleet.learner":
    raise ImportError("this folder is imported as dreamfleet.learner")
