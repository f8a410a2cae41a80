"""Benchmarks of the replay: its speed, compared with replay buffers of other libraries."""
