"""The replay service: stores rows of experience in tables, from which consumers sample windows.

A window is a sequence of consecutive rows of one environment. A consumer is a named sampler of a
table, such as `policy`.
"""

if __name__ != "dreamfleet.replay_server":
    raise ImportError("this folder is imported as dreamfleet.replay_server")

from dreamfleet.replay_server.server import ReplayServer

__all__ = ["ReplayServer"]
