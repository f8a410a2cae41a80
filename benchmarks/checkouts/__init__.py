"""Scripts that compare two checkouts (copies of this repository at two commits).

They tell whether a change made learning worse, and whether it changed any computed number.
"""
