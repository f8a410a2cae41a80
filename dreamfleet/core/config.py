"""The configuration of a run, and type-checked changes to any configuration dataclass.

A setting has the default in this module, unless a preset (settings for one environment), a flag or
`--set a.b=v` changes it. A flag overrides a preset, and `--set` overrides both.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dreamfleet.core.errors import UserError, nearest

T = TypeVar("T")

LARGEST_SEED: Final = 2**31 - 1  # environments take seeds that fit a signed 32-bit number


def within(default: T, low: float, high: float = float("inf")) -> T:
    """Returns a dataclass field with a default, whose value must lie in [low, high].

    `check_ranges` checks the value. If the value is a tuple, each of its numbers must lie in the
    range.
    """
    declared: T = field(default=default, metadata={"range": (low, high)})
    return declared


# ---------------------------------------------------------------------------------- the run


@dataclass(frozen=True)
class TrainConfig:
    """The settings `train.…`: how often the parts of a run exchange data, evaluate and save."""

    chunk: int = within(8, 1, 4096)  # vector steps that an actor sends to the replay at a time
    pull_every: int = within(16, 1)  # vector steps between an actor's pulls of newer weights
    publish_every: int = within(10, 1)  # updates between two published versions of weights
    # Type of the numbers in which trained parameters are sent to other processes. bfloat16 halves
    # their size and rounds them to 8 bits. Running statistics are always sent exactly.
    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    log_every: int = within(200, 1)  # updates between two lines of training metrics
    eval_every: int = within(1000, 0)  # env steps between evaluations; 0: never
    eval_episodes: int = within(10, 1)  # episodes per evaluation
    eval_steps: int = within(30_000, 1)  # steps after which an evaluation truncates an episode
    checkpoint_every: int = within(2000, 1)  # env steps between checkpoints
    replay_shards: int = within(1, 1, 64)  # replay processes; the actors are divided among them
    replay_gb: float | None = None  # memory limit of the replay, in GB; null: its capacity alone
    env_timeout_s: float = within(60.0, 0.1)  # seconds that an env step may take before a restart

    def __post_init__(self) -> None:
        check_ranges(self, "train.")
        if self.replay_gb is not None and not self.replay_gb > 0:
            raise UserError(f"train.replay_gb must be more than 0; found {self.replay_gb:g}.")


@dataclass(frozen=True)
class Flags:
    """The settings of a run that have a command-line flag of their own, such as `--num-actors`."""

    agent: str = "dreamer-lite"  # the algorithm; `launch.py list` names all of them
    env: str = "CartPole-v1"  # any Gymnasium id, or pkg.module:EnvId-v0 for your own
    preset: str | None = None  # the env whose preset is used; null: this env's own
    num_actors: int = within(4, 1, 1024)  # processes that step environments
    envs_per_actor: int = within(1, 1, 1024)  # environments that each actor steps together
    num_dreamers: int = within(1, 0, 64)  # processes that dream; 0: the learner's process does
    steps: int = within(10_000, 1)  # env steps to train for, counted over all actors
    seed: int = within(0, 0, LARGEST_SEED)  # the seed of all random generators of the run
    device: str = "auto"  # device of the networks: auto, cpu or cuda
    run_dir: str | None = None  # empty or new folder; null: runs/<time>_<agent>_<env>_s<seed>
    address: str | None = None  # HOST:PORT of a running Ray cluster, or auto; null: a new one
    local: bool = False  # run all parts in one thread, without Ray: deterministic
    dashboard: bool = True  # start Ray's dashboard

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device must be auto, cpu or cuda; found {self.device!r}.")
        if self.local and self.address is not None:
            raise UserError(f"--local runs without Ray, so --address {self.address} cannot apply.")
        check_ranges(self, "--")


@dataclass(frozen=True)
class RunConfig(Flags):
    """All settings of a run, as they are saved in `config.yaml` in the folder of the run."""

    train: TrainConfig = field(default_factory=TrainConfig)
    agent_options: Mapping[str, Any] = field(default_factory=dict)  # changes to agent.Config
    env_options: Mapping[str, Any] = field(default_factory=dict)  # arguments of the environment
    eval_env_options: Mapping[str, Any] = field(default_factory=dict)  # changes in evaluations

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in SHAPING:
            if name in self.eval_env_options:
                raise UserError(
                    f"eval_env.{name} is not possible: evaluations report the rewards that the "
                    "environment pays. Leave it out."
                )
        if self.train.replay_shards > self.num_actors:
            raise UserError(
                f"train.replay_shards must be at most --num-actors ({self.num_actors}), as each "
                f"shard needs an actor; found {self.train.replay_shards}."
            )

    @property
    def evaluated_options(self) -> dict[str, Any]:
        """Returns the arguments with which environments are made for evaluations.

        These are the arguments from training, changed by the settings `eval_env.…`, and without the
        arguments that shape rewards. Evaluations play whole games: `episodic_life` is False, unless
        `eval_env.episodic_life` says otherwise.
        """
        whole = {"episodic_life": False} if "episodic_life" in self.env_options else {}
        return unshaped({**self.env_options, **whole, **self.eval_env_options})


# Arguments of environments that change the rewards and nothing else.
SHAPING: Final = ("reward_floor",)

# The prefix of a group of options in a setting's name → the field of RunConfig with the options.
GROUPS: Final = {"agent": "agent_options", "env": "env_options", "eval_env": "eval_env_options"}


def unshaped(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an environment's arguments without the arguments that shape rewards."""
    return {name: value for name, value in options.items() if name not in SHAPING}


def configure(config: RunConfig, values: Mapping[str, Any], source: str = "") -> RunConfig:
    """Returns `config` with new values. Raises UserError for an unknown name or an invalid value.

    values: by dotted name, such as `train.chunk`. Values whose names begin with `agent.`, `env.` or
    `eval_env.` are not checked here. source: the name of the file with the values, for error
    messages.
    """
    try:
        for key, value in values.items():
            config = _configured(config, key, value)
    except UserError as error:
        raise UserError(f"{source}: {error}") if source else error from None
    return config


def _configured(config: RunConfig, key: str, value: Any) -> RunConfig:
    group, _, option = key.partition(".")
    if group not in GROUPS or not (option or isinstance(value, Mapping)):
        return apply(config, {key: value})
    options = getattr(config, GROUPS[group])
    if group == "agent" and option:
        options = {**options, option: value}
    else:
        options = _with_option(options, option.split(".") if option else [], value)
    return replace(config, **{GROUPS[group]: options})


def _with_option(options: Any, path: list[str], value: Any) -> Any:
    """Returns the nested mapping `options` with a new value at `path`.

    path: the keys that lead to the value, the outermost first. If `path` is empty, the items of
    `value`, a mapping, are added to `options`.
    """
    before = options if isinstance(options, Mapping) else {}
    if not path:
        return {**before, **value}
    if len(path) == 1:
        return {**before, path[0]: value}
    return {**before, path[0]: _with_option(before.get(path[0]), path[1:], value)}


# --------------------------------------------------------------------------- typed overrides


_KEPT_NESTED = {name for pair in GROUPS.items() for name in pair} - {"agent", "agent_options"}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested mappings into one mapping with dotted keys, which begin with `prefix`.

    The arguments of an environment stay nested, as their names may contain dots.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in _KEPT_NESTED:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def apply(config: T, values: Mapping[str, Any], prefix: str = "") -> T:
    """Returns the dataclass `config` with new values. values: by dotted field name.

    A whole number for a float field becomes a float. A number such as 3e4 for an int field becomes
    an int. Raises UserError for an unknown name or a value of the wrong type. prefix: text before
    the names in messages.
    """
    for key, value in values.items():
        config = _assign(config, key.split("."), value, prefix)
    return config


def _assign(config: Any, path: list[str], value: Any, prefix: str) -> Any:
    name, rest = path[0], path[1:]
    key = prefix + name
    known = [item.name for item in fields(config)]
    if name not in known:
        raise UserError(f"unknown setting {key}.{nearest(key, [prefix + k for k in known])}")
    current = getattr(config, name)
    if rest and is_dataclass(current):
        return replace(config, **{name: _assign(current, rest, value, f"{key}.")})
    if rest and isinstance(current, Mapping):
        return replace(config, **{name: {**current, ".".join(rest): value}})
    if rest:
        raise UserError(f"unknown setting {key}.{'.'.join(rest)}: {key} has no parts.")
    hint = get_type_hints(type(config))[name]
    fitted = _fit(value, hint)
    if fitted is _MISFIT:
        raise UserError(f"{key} must be {_describe(hint)}; found {value!r}.")
    return replace(config, **{name: fitted})


_MISFIT: Any = object()


def _fit(value: Any, hint: Any) -> Any:
    """Returns `value` converted to the type `hint`, or _MISFIT if this is not possible."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        fits = (_fit(value, option) for option in args)
        return next((fit for fit in fits if fit is not _MISFIT), _MISFIT)
    if origin is Literal:
        return value if value in args else _MISFIT
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return _MISFIT
        kinds = [args[0]] * len(value) if args[1:] == (...,) else list(args)
        items = [_fit(item, kind) for item, kind in zip(value, kinds, strict=False)]
        whole = len(items) == len(value) == len(kinds) and _MISFIT not in items
        return tuple(items) if whole else _MISFIT
    if hint is type(None):
        return None if value is None else _MISFIT
    if hint in (int, float):
        number = _number(value)
        if number is None or (hint is int and number != int(number)):
            return _MISFIT
        return hint(number)
    if origin is not None:  # a mapping
        return value if isinstance(value, origin) else _MISFIT
    return value if hint is Any or isinstance(value, hint) else _MISFIT


def _number(value: Any) -> float | int | None:
    """Returns a finite number, also from text such as `3e-4`; None for any other value.

    YAML 1.1 reads a number with an exponent but without a point as text.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < float("inf") else None


def _describe(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if hint in words:
        return words[hint]
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint) or origin is Mapping:
        return "a group of settings"
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        return f"a list, each item {_describe(args[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _describe(a) for a in args)
    return f"a {getattr(origin or hint, '__name__', hint)}"


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raises UserError if a field of the dataclass `config` is outside its declared range.

    `within` declares the ranges. prefix: text before a field's name in messages: `--` for flags,
    `train.` for settings.
    """
    for item in fields(config):
        if "range" not in item.metadata:
            continue
        low, high = item.metadata["range"]
        value = getattr(config, item.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(low <= number <= high for number in numbers):
            name = item.name.replace("_", "-") if prefix == "--" else item.name
            limit = f"from {low} to {high}" if high < float("inf") else f"at least {low}"
            raise UserError(f"{prefix}{name} must be {limit}; found {value}.")
