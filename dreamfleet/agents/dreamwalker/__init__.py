"""Dreamwalker. `agent.py` is the algorithm and opens with it; the parts lie beside it."""
