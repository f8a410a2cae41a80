"""The replay service: tables of rows, and who may draw which windows from them, how often."""

from replay_server.server import ReplayServer

__all__ = ["ReplayServer"]
