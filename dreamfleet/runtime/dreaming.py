"""Plays real episodes, lets the world model continue them, and writes pictures and a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from dreamfleet.core import seeding
from dreamfleet.core.config import LARGEST_SEED
from dreamfleet.core.errors import EnvironmentFault, UserError, WorkerFailed
from dreamfleet.core.types import Agent, Batch, Predictor
from dreamfleet.runtime import dream_report
from dreamfleet.runtime.blueprint import weight_groups
from dreamfleet.runtime.evaluate import Player, check_number, options_in, player

MOST_EPISODES: Final = 100  # are played at once, and their rows are held in memory
MOST_STEPS: Final = 1_000  # steps of an episode that are recorded
PICTURED: Final = 4  # windows that get pictures, at most
WINDOWS_AT_ONCE: Final = 20  # windows per call of `predict`
REPORT: Final = "dream.json"


def dream(
    run: Path,
    out: Path,
    episodes: int = 4,
    steps: int = 45,
    context: int = 5,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str = "latest",
    settings: Mapping[str, Any] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Compares an agent's dreams with real episodes. Returns the report as a dict for JSON.

    Plays greedy episodes, and cuts them into windows of `context` known rows and `steps` rows that
    the world model predicts from the real actions. Writes the report and pictures of up to
    `PICTURED` windows into the folder `out`. seed, device, checkpoint, settings, say: as of
    `evaluate`.

    Raises UserError for a wrong argument, and for an agent without a world model that predicts.
    """
    for name, value, low, high in (
        ("episodes", episodes, 1, MOST_EPISODES),
        ("steps", steps, 1, MOST_STEPS),
        ("context", context, 1, MOST_STEPS),
        ("seed", seed, 0, LARGEST_SEED),
    ):
        check_number(name, value, low, high)
    if find_spec("matplotlib") is None:
        raise UserError("dream draws curves with matplotlib. Run: pip install matplotlib")
    out = out.absolute()  # an environment may change the working directory
    found = player(run, checkpoint, device, say, settings, groups=predicting_groups)
    config = found.blueprint.config
    say(f"playing {episodes} episode{'s' * (episodes != 1)} of {config.env}")
    recorded = record(found, episodes, seed)
    windows = dream_report.cut(recorded, context, steps)
    if not len(windows):
        longest = max(len(rows["reward"]) for rows in recorded)
        raise UserError(
            f"no episode is long enough: --context {context} needs {context + 1} observations, but "
            f"the longest episode has {longest}."
        )
    say(f"dreaming {len(windows)} times {steps} steps")
    predicted = predict(found.agent, windows)
    report: dict[str, Any] = {
        "agent": config.agent,
        "env": config.env,
        **options_in(found.blueprint, settings),
        "env_steps": found.env_steps,
        "checkpoint": str(found.checkpoint),
        "seed": seed,
        "episodes": episodes,
        "context": context,
        "steps": steps,
        **dream_report.compare(windows, predicted, recorded),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        report["files"] = draw(out, windows, predicted, report)
        text = json.dumps(report, indent=1) + "\n"
        (out / REPORT).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror}. Name a folder.") from None
    return report


def predicting_groups(agent: Agent, checkpoint: str) -> tuple[str, ...]:
    """Returns the weight groups that acting and predicting need: all groups of the agent.

    Raises UserError if the agent has no world model or no method `predict`, or if the checkpoint of
    the best evaluation holds no world model.
    """
    groups = weight_groups(agent)
    if "world" not in groups:
        raise UserError("this run has no world model, so there are no dreams to show.")
    if not isinstance(agent, Predictor):
        raise UserError("this agent has no method `predict`, so its dreams cannot be shown.")
    if checkpoint == "best" and not set(groups) <= set(agent.act_groups):
        raise UserError(
            "the best checkpoint of this run holds only what acting needs, which is not the world "
            "model. Use --checkpoint latest."
        )
    return groups


def record(found: Player, episodes: int, seed: int) -> list[Batch]:
    """Plays greedy episodes. Returns the rows of each, with all columns of the replay: (T, …).

    An episode is cut after `MOST_STEPS` steps. Raises WorkerFailed when the environment breaks.
    """
    from dreamfleet.actors.evaluator import play

    recorder = Recorder(episodes)
    with seeding.seeded_globals(seed):
        env = found.blueprint.evaluation_env(episodes)
        try:
            play(env, found.agent, episodes, seed, MOST_STEPS, watch=recorder)
        except EnvironmentFault as fault:
            raise WorkerFailed(f"the episodes broke: {fault}") from None
        finally:
            env.close()
    return recorder.episodes()


class Recorder:
    """Collects the rows of the first episode of each of N environments, for `play` to call."""

    def __init__(self, n: int) -> None:
        self._rows: list[list[Batch]] = [[] for _ in range(n)]
        self._running = np.ones(n, bool)

    def __call__(self, rows: Batch) -> None:
        for i in np.flatnonzero(self._running):
            self._rows[i].append({key: value[i] for key, value in rows.items()})
        self._running &= ~rows["last"]

    def episodes(self) -> list[Batch]:
        """Returns the rows of each episode, by column: (T, …)."""
        return [
            {key: np.stack([row[key] for row in rows]) for key in rows[0]} for rows in self._rows
        ]


def predict(agent: Agent, windows: dream_report.Windows) -> Batch:
    """Returns the agent's predictions for W windows: arrays (W, H, …).

    Raises UserError if a predicted number is not finite.
    """
    assert isinstance(agent, Predictor)
    parts = []
    for begin in range(0, len(windows), WINDOWS_AT_ONCE):
        some = slice(begin, begin + WINDOWS_AT_ONCE)
        window = {key: value[some] for key, value in windows.rows.items()}
        parts.append(agent.predict(window, windows.context))
    predicted = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    for name, values in predicted.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"the world model predicts {name} that is not finite, as before its first update. "
                "Train the run for more steps."
            )
    return predicted


def draw(
    out: Path, windows: dream_report.Windows, predicted: Batch, report: Mapping[str, Any]
) -> list[str]:
    """Draws some of the windows into the folder `out`. Returns the paths of the pictures.

    Each of these windows gets curves, and for each part of the observation that is an image a film
    and a strip.
    """
    from dreamfleet.runtime.dream_pictures import Dream, save_curves, save_film, save_strip

    files = []
    for w in windows.spread(PICTURED):
        episode, begin = windows.episode[w] + 1, windows.begin[w]
        title = f"{report['agent']} on {report['env']}, episode {episode} from step {begin}"
        shown = Dream.of(windows, predicted, w, title)
        for part in shown.images():
            stem = out / f"{part.replace('.', '-')}_episode-{episode}_step-{begin}"
            files += [stem.with_suffix(".gif"), stem.with_suffix(".png")]
            save_film(files[-2], shown, part)
            save_strip(files[-1], shown, part)
        files.append(out / f"curves_episode-{episode}_step-{begin}.png")
        save_curves(files[-1], shown, report)
    return [str(file) for file in files]
