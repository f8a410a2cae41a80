"""Scripts that measure this project: learning, replay, learner speed, start-up, two checkouts."""
