"""Trains on a Ray cluster that another program also uses, and prints what is left on the cluster.

Usage: `python -m tests.runtime.joining NEW_FOLDER`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util import list_named_actors

from dreamfleet import agents, cli
from tests.runtime.runs import FAKE


class Theirs:
    """A Ray actor of the other program."""


def processes() -> list[str]:
    """Returns the titles of the processes of Ray actors in this process's session (see setsid).

    Ray's own helper processes are left out.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) == os.getsid(0):
                found.append((entry / "cmdline").read_bytes().rstrip(b"\0").decode())
    return [title for title in found if title.startswith("ray::") and title not in RAYS_OWN]


RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")

if __name__ == "__main__":
    os.setsid()
    agents.REGISTRY["fake"] = FAKE
    cluster = Cluster(True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        join = {"address": cluster.address, "logging_level": logging.ERROR, "log_to_driver": False}
        ray.init(**join)
        ray.remote(Theirs).options(name="theirs", lifetime="detached", num_cpus=0.5).remote()
        ray.shutdown()
        run = (
            "--agent",
            "fake",
            "--env",
            "dreamfleet.envs.probe:Count-v0",
            "--run-dir",
            sys.argv[1],
        )
        code = cli.main([*run, "--address", cluster.address, "--steps", "100"])
        ray.init(**join)
        nodes = sum(node["Alive"] for node in ray.nodes())
        actors = [actor["name"] for actor in list_named_actors(all_namespaces=True)]
        ray.shutdown()
        deadline = time.monotonic() + 5.0
        while len(left := processes()) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        print(  # noqa: T201
            f"exit code {code}, nodes {nodes}, actors {actors}, processes {left}"
        )
    finally:
        cluster.shutdown()
