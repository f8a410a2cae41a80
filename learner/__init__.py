"""The learner, and the store through which weights reach the others."""
