"""Dreamer-Lite: a latent world model, and a policy and a critic that learn in its dreams."""
