"""Benchmarks of learning: curves over several seeds, of our agents and of Stable-Baselines3."""
