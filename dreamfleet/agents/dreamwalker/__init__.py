"""The agent Dreamwalker; the docstring of its module `agent.py` describes the algorithm."""
