"""Measurements of what this project claims, each a script that runs on its own."""
