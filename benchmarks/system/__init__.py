"""Benchmarks of whole runs on Ray: start-up time, and training with many actors."""
