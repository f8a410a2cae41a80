"""The command line, with the commands train (the default), eval, dream, list, check and bench.

Packages that take long to import, such as torch, are imported only after the arguments have been
checked.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg

from dreamfleet import agents
from dreamfleet.core.config import Flags
from dreamfleet.core.errors import UserError, WorkerFailed, nearest
from dreamfleet.core.output import stdout_to_stderr

if TYPE_CHECKING:
    from dreamfleet.runtime.start import Plan

Settings = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE")]  # values of --set

EXAMPLES = """examples:
  python launch.py --num-actors 16                               train on CartPole, on Ray
  python launch.py --env Pendulum-v1 --local --seed 3            in one thread, deterministic
  python launch.py eval latest --episodes 100 --video films/     how good is it?
  python launch.py dream latest --out dreams/                    what does it dream?

commands: train (the default) · eval RUN · dream RUN · check AGENT · bench replay
          list [agents|envs|presets|settings|metrics]
`python launch.py COMMAND --help` describes each.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code.

    argv: the command and its arguments; None: those of the process. Exit codes: 0 success, 1 a
    failure or a bug, 2 a mistake of the user, 130 Ctrl-C, 143 SIGTERM.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks are slower with more threads
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": train,
        "eval": evaluate,
        "dream": dream,
        "list": show,
        "check": check,
        "bench": measure,
    }
    try:
        if not args or args[0].startswith("-"):
            args.insert(0, "train")
        if args[0] not in commands:
            raise UserError(f"unknown command {args[0]!r}.{nearest(args[0], commands)}")
        return commands[args[0]](args[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WorkerFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


# --------------------------------------------------------------------------------- commands


def train(args: Sequence[str]) -> int:
    """Runs the command `train`: trains an agent in a new run, or resumes a run."""
    planned = configured(args)

    from dreamfleet.runtime.start import start

    return start(planned, shlex.join(["launch.py", "train", *args]))[0]


def evaluate(args: Sequence[str]) -> int:
    """Runs the command `eval`: plays greedy episodes of a run's policy and prints statistics."""

    def command(
        run: Annotated[Positional[str], arg(metavar="RUN")],
        episodes: int = 100,
        seed: int = 0,
        checkpoint: str = "latest",
        max_steps: int | None = None,
        device: str = "auto",
        set: Settings = (),
        video: Path | None = None,
        json: FlagCreatePairsOff[bool] = False,
    ) -> dict[str, Any]:
        """Plays a trained policy greedily and prints its mean return.

        Args:
            run: a run's folder, or latest
            episodes: number of episodes
            seed: the same seed plays the same episodes
            checkpoint: latest, best (highest mean return of an evaluation), or a path
            max_steps: steps after which an episode is truncated; default: setting train.eval_steps
            device: auto, cpu or cuda
            set: an argument of the environment, such as env.gravity=5;
                or a setting that changes only how the agent acts
            video: folder for films, one of every tenth episode
            json: prints only one JSON object on standard output
        """
        return dict(locals())

    given = parse(command, args, "eval")

    from dreamfleet.runtime import start
    from dreamfleet.runtime.evaluate import evaluate as play

    run = start.run_path(given["run"])
    asked = {key: given[key] for key in given if key not in ("run", "json", "set")}
    with stdout_to_stderr():  # what environments print must not mix with the result
        found = play(run, **asked, settings=parse_overrides(given["set"]), say=say)
    if given["json"]:
        print(json.dumps(found))
        return 0
    print(f"{policy_in(found)}: {in_words(found)} · {found['checkpoint']}")
    for category in dict.fromkeys(key.partition("/")[0] for key in found if "/" in key):
        prefix = f"{category}/"
        figures = {key.removeprefix(prefix): found[key] for key in found if prefix in key}
        print(f"  {category}: {in_words(figures)}")
    if "films" in found:
        n = len(found["films"])
        names = ": " + ", ".join(Path(film).name for film in found["films"][:3]) if n else ""
        more = ", …" if n > 3 else ""
        print(f"{n} film{'s' * (n != 1)} in {given['video']}{names}{more}")
    return 0


def dream(args: Sequence[str]) -> int:
    """Runs the command `dream`: draws dreams beside the real episodes, and measures their error."""

    def command(
        run: Annotated[Positional[str], arg(metavar="RUN")],
        out: Path,
        episodes: int = 4,
        steps: int = 45,
        context: int = 5,
        seed: int = 0,
        checkpoint: str = "latest",
        device: str = "auto",
        set: Settings = (),
        json: FlagCreatePairsOff[bool] = False,
    ) -> dict[str, Any]:
        """Draws dreams beside the real episodes that they continue, and measures their error.

        Args:
            run: a run's folder, or latest
            out: folder for the pictures and the report dream.json
            episodes: number of real episodes
            steps: steps of each dream
            context: real rows that the world model sees before the dream begins
            seed: the same seed plays the same episodes
            checkpoint: latest, best (highest mean return of an evaluation), or a path
            device: auto, cpu or cuda
            set: an argument of the environment, such as env.gravity=5;
                or a setting that changes only how the agent acts
            json: prints only one JSON object on standard output
        """
        return dict(locals())

    given = parse(command, args, "dream")

    from dreamfleet.runtime import dream_report, dreaming, start

    run = start.run_path(given["run"])
    asked = {key: given[key] for key in given if key not in ("run", "json", "set")}
    with stdout_to_stderr():  # what environments print must not mix with the result
        found = dreaming.dream(run, **asked, settings=parse_overrides(given["set"]), say=say)
    if given["json"]:
        print(json.dumps(found))
        return 0
    print(f"{policy_in(found)}: {found['windows']} dreams · {found['checkpoint']}")
    print("\n".join(dream_report.in_lines(found)))
    names = ", ".join(Path(file).name for file in found["files"])
    print(f"In {given['out']}: {dreaming.REPORT}, {names}")
    return 0


def say(line: str) -> None:
    """Prints on standard error what a command does at the moment."""
    print(f"{line} …", file=sys.stderr, flush=True)


def policy_in(found: Mapping[str, Any]) -> str:
    """Returns agent, environment, their arguments and the steps of training as text.

    found: what a command has found, with the keys `agent`, `env` and `env_steps`.
    """
    named = []
    for key in ("agent", "env"):
        options = found.get(f"{key}_options") or {}
        texts = ", ".join(f"{name}={json.dumps(value)}" for name, value in options.items())
        named.append(f"{found[key]} ({texts})" if texts else found[key])
    return f"{' on '.join(named)} after {found['env_steps']:,} steps"


def in_words(figures: Mapping[str, Any]) -> str:
    """Returns the statistics of an evaluation as one line of text.

    figures: name, such as `return_mean` → value. They are of all episodes, or of one category of
    episodes, such as one level of difficulty.
    """
    facts = [key for key in figures if key.endswith("_mean") and "/" not in key]
    others = [key for key in facts if key not in ("return_mean", "length_mean")]
    return ", ".join(
        (
            f"return {figures['return_mean']:.1f} ± {figures['return_std']:.1f} "
            f"(lowest {figures['return_min']:.1f}) over {figures['episodes']} episodes "
            f"of {figures['length_mean']:.0f} steps",
            *(f"{key.removesuffix('_mean')} {figures[key]:.3g}" for key in others),
            *(f"{count} truncated" for count in (figures.get("reached_step_limit"),) if count),
        )
    )


def show(args: Sequence[str]) -> int:
    """Runs the command `list`: prints agents, environments, presets, settings or metrics."""

    def command(
        what: Positional[
            Literal["agents", "envs", "presets", "settings", "metrics", "all"]
        ] = "all",
        agent: Annotated[Positional[str | None], arg(metavar="AGENT")] = None,
    ) -> tuple[str, str | None]:
        """Lists agents, environments and presets, or all settings, or all metrics.

        Args:
            what: what to list; all: agents, environments and presets
            agent: lists the settings of this agent only; allowed after `list settings`
        """
        return what, agent

    what, agent = parse(command, args, "list")
    if agent is not None and what != "settings":
        raise UserError(f"only list settings takes an agent; found list {what} {agent}.")
    lines: list[str] = []
    if what in ("agents", "all"):
        lines.append("agents, and your own as pkg.module:Class")
        lines += [f"  {name}: {what}" for name, what in agents.known().items()]
    if what in ("presets", "all"):
        from dreamfleet.runtime import presets

        lines.append("presets")
        for agent, by_env in presets.every().items():
            for env, values in by_env.items():
                lines.append(f"  {agent} {env}: {json.dumps(values)[1:-1]}")
    if what in ("envs", "all"):
        from dreamfleet.envs import registry

        lines.append("envs, and your own as pkg.module:EnvId-v0")
        lines += [f"  {env}" for env in registry.known()]
    width = min(shutil.get_terminal_size().columns, 100) if sys.stdout.isatty() else None
    if what == "settings":
        from dreamfleet.runtime import reference

        for title, settings in reference.groups(agent).items():
            lines += ["", reference.TITLES.get(title, f"agent {title}: --set NAME=VALUE")]
            for it in settings:
                lines += reference.in_lines(it, width)
    if what == "metrics":
        from dreamfleet.runtime import metric_reference, reference

        for title, metrics in metric_reference.groups().items():
            lines += ["", title]
            for metric in metrics:
                text = f"{metric.meaning} Healthy: {metric.healthy}"
                unit = f" [{metric.unit}]" if metric.unit else ""
                lines += reference.hanging(metric.name + unit, text, width)
    try:
        print("\n".join(lines).lstrip("\n"), flush=True)
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def check(args: Sequence[str]) -> int:
    """Runs the command `check`: tests whether an agent does what the contract tests demand."""

    def command(
        agent: Annotated[Positional[str], arg(metavar="AGENT")],
    ) -> str:
        """Tests an agent with the contract tests, in every kind of space that the agent declares.

        Args:
            agent: a name of `list agents`, or pkg.module:Class for your own
        """
        return agent

    agent = parse(command, args, "check")
    agents.find(agent)
    if find_spec("pytest") is None:
        raise UserError("check needs pytest. Run: pip install pytest")
    import pytest

    from dreamfleet import contracts

    class Chosen:
        def pytest_configure(self, config: pytest.Config) -> None:
            config.stash[contracts.AGENTS] = (agent,)
            config.addinivalue_line("markers", "costly: left out by most runs of our own tests")

    own = ["-c", os.devnull, "--rootdir", str(Path(contracts.__file__).parent), "--noconftest"]
    quiet = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    found = pytest.main([*own, *quiet, contracts.__file__], plugins=[Chosen()])
    return int(found != 0)


def measure(args: Sequence[str]) -> int:
    """Runs the command `bench`: compares the speed of dreamfleet's replay with other libraries."""

    def command(
        what: Positional[Literal["replay"]],
        rows: tuple[str, ...] = (),
        rounds: int = 5,
        quick: FlagCreatePairsOff[bool] = False,
        reverb_python: Path | None = None,
        json: Path | None = None,
    ) -> dict[str, Any]:
        """Measures the speed of dreamfleet's replay and of other libraries; prints a table.

        Args:
            what: what to measure; only the replay has a benchmark
            rows: names of the rows of the table to measure; default: all
            rounds: how often each measurement is repeated
            quick: measures tiny sizes, to test the benchmark; leaves out rows that start Ray
            reverb_python: a Python interpreter with dm-reverb and TensorFlow
            json: file for the measurements
        """
        return dict(locals())

    given = parse(command, args, "bench")

    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "benchmarks" / "replay" / "bench.py").is_file():
        raise UserError("bench needs a checkout: the benchmarks are not part of the package.")
    sys.path.insert(0, str(checkout))
    from benchmarks.replay import bench

    return bench.bench(
        given["rows"], given["rounds"], given["quick"], given["reverb_python"], given["json"]
    )


# ------------------------------------------------------------------------------- arguments


def configured(args: Sequence[str]) -> Plan:
    """Parses the arguments of `train` and returns the description of the run to start."""
    from dreamfleet.runtime import start

    _, resume, overrides = train_flags(args, Flags())
    return start.plan(lambda base: train_flags(args, base)[0], parse_overrides(overrides), resume)


def train_flags(args: Sequence[str], base: Flags) -> tuple[Flags, str | None, tuple[str, ...]]:
    """Parses the arguments of the command `train`.

    Returns the flags, the value of --resume, and all values of --set. base: flags with default
    values, used for each flag that `args` does not contain.
    """

    def command(
        run: OmitArgPrefixes[Flags] = base,
        resume: Annotated[str | None, arg(metavar="RUN")] = None,
        set: Settings = (),
    ) -> tuple[Flags, str | None, tuple[str, ...]]:
        """Trains an agent.

        Args:
            resume: continues an earlier run: its folder, or latest
            set: any other setting, such as train.chunk=32 or agent.dream_horizon=10;
                an argument of the environment, such as env.gravity=5;
                or an argument for evaluations only, such as eval_env.gravity=9.8
        """
        return run, resume, set

    given: tuple[Flags, str | None, tuple[str, ...]] = parse(command, args, "train", EXAMPLES)
    return given


def parse_overrides(given: Sequence[str]) -> dict[str, Any]:
    """Parses the values of --set, such as `env.size=[3, 4]`. Returns a dict: setting → value.

    The text after the equals sign is parsed as YAML.
    """
    import yaml

    values = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--set takes KEY=VALUE; found {item!r}.")
        try:
            values[key] = exponents(yaml.safe_load(text))
        except yaml.YAMLError:
            raise UserError(f"--set {key}: {text!r} is not a YAML value.") from None
    return values


def exponents(value: Any) -> Any:
    """Converts texts such as `3e-4` to numbers, also inside lists and dicts; returns the new value.

    The YAML parser returns such numbers as text.
    """
    if isinstance(value, list):
        return [exponents(item) for item in value]
    if isinstance(value, dict):
        return {key: exponents(item) for key, item in value.items()}
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if is_number else value


def parse(command: Callable[..., Any], args: Sequence[str], name: str, more: str = "") -> Any:
    """Parses arguments for a function with tyro, calls the function, and returns its result.

    command: the function; its parameters are the allowed flags. name: the name of the command, for
    messages. more: text to show before the help. Raises UserError for a wrong flag or value.
    """
    description = f"{more}\n{(command.__doc__ or '').partition('Args:')[0].strip()}".strip()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            result, unknown = tyro.cli(
                command,
                prog=f"launch.py {name}",
                description=description,
                args=args,
                return_unknown_args=True,
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UserError(
            f"{first_sentence(printed.getvalue())} See: launch.py {name} --help"
        ) from None
    if unknown:
        kind = "flag" if unknown[0].startswith("-") else "argument"
        word = unknown[0].partition("=")[0]
        raise UserError(f"unknown {kind} {word}.{nearest(word, flag_names(command))}")
    return result


def flag_names(command: Callable[..., Any]) -> list[str]:
    """Returns all flags of a command as a user types them, such as `--num-actors`.

    command: the function whose parameters are the flags.
    """
    names: list[str] = []
    for name, parameter in inspect.signature(command).parameters.items():
        inner = parameter.default
        names += [field.name for field in fields(inner)] if is_dataclass(inner) else [name]
    flags = ["--" + name.replace("_", "-") for name in names]
    return flags + ["--no-" + flag[2:] for flag in flags]


def first_sentence(box: str) -> str:
    """Returns the first sentence of an error message of tyro, the library that parses the flags.

    box: the whole message as tyro prints it: a title and text inside a drawn box.
    """
    lines = [line.strip("│| ") for line in box.splitlines()[1:]]
    below = itertools.dropwhile(_is_rule, lines)
    text = " ".join(itertools.takewhile(lambda line: not _is_rule(line), below))
    text = text.removeprefix("Error parsing ").rstrip(".") + "."
    return text.replace("invalid literal for int() with base 10:", "must be a whole number; found")


def _is_rule(line: str) -> bool:
    return set(line) <= {"─", "-"}
