"""The agent Gated Rainbow; the docstring of its module `agent.py` describes the algorithm."""
