"""The learner, and the store through which weights reach the others."""

if __name__ != "dreamfleet.learner":
    raise ImportError("this folder is imported as dreamfleet.learner")
