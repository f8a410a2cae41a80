"""Learning curves of several seeds, of ours and of Stable-Baselines3."""
