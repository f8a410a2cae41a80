"""Speed of learners: updates per second, compared with other implementations."""
