"""The replay service: tables of rows, from which consumers sample windows at limited rates."""

if __name__ != "dreamfleet.replay_server":
    raise ImportError("this folder is imported as dreamfleet.replay_server")

from dreamfleet.replay_server.server import ReplayServer

__all__ = ["ReplayServer"]
