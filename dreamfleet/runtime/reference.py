"""Writes the reference of all settings: names, defaults, ranges and meanings, from the code.

`launch.py list settings` and `docs/settings.md` show this reference.
"""

from __future__ import annotations

import textwrap
from typing import Final

from dreamfleet import agents
from dreamfleet.core.config import Flags, TrainConfig
from dreamfleet.core.settings import Setting, described

HEAD = """# Settings

This page lists every flag and setting of a training run. The command `python docs/generate.py`
writes this page from the comments in the code. `launch.py list settings [AGENT]` prints the same
list.

A flag is given as `--num-actors 4`, and every other setting as `--set NAME=VALUE`.

The value that you give has precedence over the preset (the settings of the agent for this
environment). The preset has precedence over the default. `launch.py list presets` prints all
presets.

The settings `env.NAME` and `eval_env.NAME` are not in these lists, because they are arguments of
your environment. [own-environment.md](own-environment.md) explains them.

In the column "source of the default", a seed project is an earlier public repository from which an
agent takes default values:
- 000: [skjazz/Model-based-DQN](https://github.com/skjazz/Model-based-DQN);
- 002: [ArijusLengvenis/bipedal-walker-dreamer](https://github.com/ArijusLengvenis/bipedal-walker-dreamer);
- 003: `50_final_project` of
  [ChristianLin0420/machine-learning-fundamental](https://github.com/ChristianLin0420/machine-learning-fundamental).

The source "MBPO: 7" means that MBPO uses the value 7, and that the default here differs.
"""


TITLES: Final = {
    "flags": "flags of launch.py train",
    "train": "training: --set NAME=VALUE",
}


def groups(agent: str | None = None) -> dict[str, list[Setting]]:
    """Returns all settings as a dict: title of a group → settings.

    The groups are "flags", "train" (`train.…`), and one for each agent (`agent.…`). agent: the only
    agent to include; None: all agents of dreamfleet.
    """
    flags = [
        Setting("--" + it.name.replace("_", "-"), it.default, it.allowed, it.meaning)
        for it in described(Flags, "")
    ]
    found = {"flags": flags, "train": described(TrainConfig, "train.")}
    for name in [agent] if agent else agents.REGISTRY:
        found[name] = described(agents.load(name).Config, "agent.")
    return found


def in_lines(setting: Setting, width: int | None) -> list[str]:
    """Returns the description of a setting (name, default, range, meaning) as lines of text.

    width: columns at which lines are wrapped; None: everything on one line.
    """
    allowed = f" ({setting.allowed})" if setting.allowed else ""
    source = f" [{setting.source}]" if setting.source else ""
    return hanging(f"{setting.name} = {setting.default}{allowed}", setting.meaning + source, width)


def hanging(name: str, text: str, width: int | None) -> list[str]:
    """Returns `name` on a line, and below it `text` on indented lines.

    width: columns at which the text is wrapped; None: returns one line, `name: text`.
    """
    if width is None:
        return [f"  {name}: {text}".rstrip(": ")]
    wrapped = textwrap.wrap(text, max(width, 30), initial_indent=" " * 6, subsequent_indent=" " * 6)
    return [f"  {name}", *wrapped]


def page() -> str:
    """Returns the text of `docs/settings.md`, the reference of all settings."""
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
