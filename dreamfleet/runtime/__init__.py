"""Starts and supervises training runs, in one thread or with processes on Ray."""
