"""Chooses the device (CPU or GPU) of an agent, and makes random generators on it."""

from __future__ import annotations

import torch


def resolve_device(device: str) -> str:
    """Returns `device`; for "auto", returns "cuda" if there is a CUDA GPU, else "cpu"."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def available_devices() -> list[str]:
    """Returns the kinds of devices that this machine has: "cpu", and "cuda" if there is a GPU."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def make_rng(seed: int, device: str) -> torch.Generator:
    """Returns a new random generator on `device`, seeded with `seed`."""
    return torch.Generator(device).manual_seed(seed)
