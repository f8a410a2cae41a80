"""Benchmarks of this project: learning curves, replay speed, learner speed and start-up time.

One more benchmark compares two checkouts (copies of this repository at two commits).
"""
