"""World-model reinforcement learning: actors, dreamers and a learner around one replay."""
