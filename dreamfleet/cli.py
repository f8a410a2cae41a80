"""The command line: train (the default) · eval · list · check · bench. Checks what was given.

Nothing heavy is imported before the arguments are known to be good.
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

EXAMPLES = """examples:
  python launch.py --num-actors 16                               train on CartPole, on Ray
  python launch.py --env Pendulum-v1 --local --seed 3            in one thread, deterministic
  python launch.py eval latest --episodes 100 --video films/     how good is it?

commands: train (the default) · eval RUN · list [agents|envs|presets|settings]
          check AGENT · bench replay
`python launch.py COMMAND --help` describes each.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command → its exit code: 0 done, 1 a bug, 2 the person's mistake, 130/143 stopped."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small lose by more threads
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": train,
        "eval": evaluate,
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
    """Train an agent, or go on with a run."""
    planned = configured(args)

    from dreamfleet.runtime.start import start

    return start(planned, shlex.join(["launch.py", "train", *args]))[0]


def evaluate(args: Sequence[str]) -> int:
    """Play a checkpoint of a run greedily."""

    def command(
        run: Annotated[Positional[str], arg(metavar="RUN")],
        episodes: int = 100,
        seed: int = 0,
        checkpoint: str = "latest",
        max_steps: int | None = None,
        device: str = "auto",
        video: Path | None = None,
        json: FlagCreatePairsOff[bool] = False,
    ) -> dict[str, Any]:
        """Play a trained policy greedily and say how well it does.

        Args:
            run: a run's folder, or latest
            episodes: episodes to play
            seed: of the environments; the same seed plays the same episodes
            checkpoint: latest, best (by the run's own evaluations), or the path of one
            max_steps: steps after which an episode is cut short; none: the run's train.eval_steps
            device: where networks live: auto, cpu or cuda
            video: a folder for films
            json: print one JSON object and nothing else
        """
        return dict(locals())

    given = parse(command, args, "eval")

    from dreamfleet.runtime import start
    from dreamfleet.runtime.evaluate import evaluate as play

    run = start.run_path(given["run"])
    asked = {key: value for key, value in given.items() if key not in ("run", "json")}
    with stdout_to_stderr():  # environments print as they like
        found = play(run, **asked)
    if given["json"]:
        print(json.dumps(found))
    else:
        whose = f"{found['agent']} on {found['env']} after {found['env_steps']:,} steps"
        print(f"{whose}: {in_words(found)} · {found['checkpoint']}")
        for kind in dict.fromkeys(key.partition("/")[0] for key in found if "/" in key):
            prefix = f"{kind}/"
            those = {key.removeprefix(prefix): found[key] for key in found if prefix in key}
            print(f"  {kind}: {in_words(those)}")
    return 0


def in_words(figures: Mapping[str, Any]) -> str:
    """The figures of an evaluation, or of one kind of its episodes, in words."""
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
    """Print the agents, environments or presets there are."""

    def command(
        what: Positional[Literal["agents", "envs", "presets", "settings", "all"]] = "all",
        agent: Annotated[Positional[str | None], arg(metavar="AGENT")] = None,
    ) -> tuple[str, str | None]:
        """List what can be trained: the agents, the environments, the presets; or every setting.

        Args:
            agent: of list settings: whose; none: those of all agents
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
    if what == "settings":
        from dreamfleet.runtime import reference

        for title, settings in reference.groups(agent).items():
            lines.append(title)
            lines += [f"  {reference.in_line(setting)}" for setting in settings]
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # whoever reads has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def check(args: Sequence[str]) -> int:
    """Test whether an agent keeps what every agent promises."""

    def command(
        agent: Annotated[Positional[str], arg(metavar="AGENT")],
    ) -> str:
        """Run the contract tests on an agent, in every kind of space that it declares.

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

    own = ["-c", os.devnull, "--rootdir", str(Path(contracts.__file__).parent), "--noconftest"]
    quiet = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    found = pytest.main([*own, *quiet, contracts.__file__], plugins=[Chosen()])
    return int(found != 0)


def measure(args: Sequence[str]) -> int:
    """Measure a part against what others would use in its place."""

    def command(
        what: Positional[Literal["replay"]],
        rows: tuple[str, ...] = (),
        rounds: int = 5,
        quick: FlagCreatePairsOff[bool] = False,
        reverb_python: Path | None = None,
        json: Path | None = None,
    ) -> dict[str, Any]:
        """Measure the replay side by side with its peers, and print a table of ratios.

        Args:
            what: what to measure
            rows: rows of the table, by name; all when none is named
            rounds: how often each side has its turn
            quick: everything tiny: to see that it runs, not how fast
            reverb_python: an interpreter that has dm-reverb and TensorFlow
            json: a file for the figures
        """
        return dict(locals())

    given = parse(command, args, "bench")

    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "benchmarks" / "replay.py").is_file():
        raise UserError("bench needs a checkout: the benchmarks are not part of the package.")
    sys.path.insert(0, str(checkout))
    from benchmarks import replay

    return replay.bench(
        given["rows"], given["rounds"], given["quick"], given["reverb_python"], given["json"]
    )


# ------------------------------------------------------------------------------- arguments


def configured(args: Sequence[str]) -> Plan:
    """Returns the run that the arguments of `train` ask for."""
    from dreamfleet.runtime import start

    _, resume, overrides = train_flags(args, Flags())
    return start.plan(lambda base: train_flags(args, base)[0], parse_overrides(overrides), resume)


def train_flags(args: Sequence[str], base: Flags) -> tuple[Flags, str | None, tuple[str, ...]]:
    """(flags, --resume, every --set); what is not given stays as in `base`."""

    def command(
        run: OmitArgPrefixes[Flags] = base,
        resume: Annotated[str | None, arg(metavar="RUN")] = None,
        set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE")] = (),
    ) -> tuple[Flags, str | None, tuple[str, ...]]:
        """Train an agent.

        Args:
            resume: go on with an earlier run: its folder, or latest
            set: any other setting: train.chunk=32, agent.dream_horizon=10; arguments of the
                environment: env.gravity=5, and eval_env.gravity=9.8 where evaluations differ
        """
        return run, resume, set

    given: tuple[Flags, str | None, tuple[str, ...]] = parse(command, args, "train", EXAMPLES)
    return given


def parse_overrides(given: Sequence[str]) -> dict[str, Any]:
    """`train.chunk=16`, `env.size=[3, 4]` → dotted values, each read as YAML."""
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
    """Returns `value` with texts such as 3e-4 as numbers, which YAML 1.1 takes for texts."""
    if isinstance(value, list):
        return [exponents(item) for item in value]
    if isinstance(value, dict):
        return {key: exponents(item) for key, item in value.items()}
    looks_like_one = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if looks_like_one else value


def parse(command: Callable[..., Any], args: Sequence[str], name: str, more: str = "") -> Any:
    """Call `command` with what `args` say. UserError, in one line, for a flag or value that fails.

    tyro prints its mistakes as boxes of many lines; the first one of them says what was wrong.
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
    """Every flag of a command, as typed."""
    names: list[str] = []
    for name, parameter in inspect.signature(command).parameters.items():
        inner = parameter.default
        names += [field.name for field in fields(inner)] if is_dataclass(inner) else [name]
    flags = ["--" + name.replace("_", "-") for name in names]
    return flags + ["--no-" + flag[2:] for flag in flags]


def first_sentence(box: str) -> str:
    """What tyro says below the title of its box, up to the next rule."""
    lines = [line.strip("│| ") for line in box.splitlines()[1:]]
    below = itertools.dropwhile(_is_rule, lines)
    text = " ".join(itertools.takewhile(lambda line: not _is_rule(line), below))
    text = text.removeprefix("Error parsing ").rstrip(".") + "."
    return text.replace("invalid literal for int() with base 10:", "must be a whole number; found")


def _is_rule(line: str) -> bool:
    return set(line) <= {"─", "-"}
