"""Those that act: actors fill the replay, the evaluator only measures."""
