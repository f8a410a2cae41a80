"""Gated Rainbow. Begin with `agent.py`: its docstring describes the algorithm."""
