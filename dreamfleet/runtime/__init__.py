"""Runs the parts of a run, in one thread or as processes on Ray."""
