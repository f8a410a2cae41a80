"""The reference of settings, made from the code, for the command line and `docs/settings.md`."""

from __future__ import annotations

from dreamfleet import agents
from dreamfleet.core.config import Flags, TrainConfig
from dreamfleet.core.settings import Setting, described

HEAD = """# Settings

`python docs/generate.py` writes this page from the comments in the code.
`launch.py list settings [AGENT]` prints the same.
A flag is given as `--num-actors 4`, every other setting as `--set NAME=VALUE`.
What is given wins over the preset (`launch.py list presets`), and the preset over the default.
`env.NAME` and `eval_env.NAME` are arguments of the environment: see
[own-environment.md](own-environment.md).
"""


def groups(agent: str | None = None) -> dict[str, list[Setting]]:
    """Returns all settings by title: flags, `train.…`, and `agent.…` of one agent or of all."""
    flags = [
        Setting("--" + it.name.replace("_", "-"), it.default, it.allowed, it.meaning)
        for it in described(Flags, "")
    ]
    found = {"flags": flags, "train": described(TrainConfig, "train.")}
    for name in [agent] if agent else agents.REGISTRY:
        found[name] = described(agents.load(name).Config, "agent.")
    return found


def in_line(setting: Setting) -> str:
    """Returns a setting on one line."""
    allowed = f" ({setting.allowed})" if setting.allowed else ""
    source = f" [{setting.source}]" if setting.source else ""
    return f"{setting.name} = {setting.default}{allowed}: {setting.meaning}{source}".rstrip(": ")


def page() -> str:
    """Returns the text of `docs/settings.md`."""
    parts = [HEAD]
    for title, settings in groups().items():
        rows = [
            f"| `{it.name}` | `{it.default}` | {it.allowed} | {it.meaning.replace('|', '¦')} "
            f"| {it.source} |"
            for it in settings
        ]
        head = [
            *(f"## {title}", ""),
            "| name | default | range | meaning | source of the default |",
            "|---|---|---|---|---|",
        ]
        parts.append("\n".join([*head, *rows, ""]))
    return "\n".join(parts)
