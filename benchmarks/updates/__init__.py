"""Benchmarks of learners: updates per second, compared with other implementations."""
