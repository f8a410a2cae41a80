"""The wirings: the same parts in one thread or spread over a Ray cluster."""
