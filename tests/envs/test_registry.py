"""Tests which environment ids are found, and the one-line errors for other ids."""

import subprocess
import sys

import gymnasium as gym
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Space
from dreamfleet.envs import registry
from dreamfleet.envs.vector import GymVector


def test_discrete_and_box_environments_are_described_as_the_agent_sees_them():
    cartpole = registry.describe("CartPole-v1")
    assert cartpole.obs == Space((4,), "float32")
    assert cartpole.action == Space((), "int64", n=2)
    pendulum = registry.describe("Pendulum-v1")
    assert pendulum.obs == Space((3,), "float32")
    assert pendulum.action == Space((1,), "float32")


def test_atari_ids_resolve_to_small_grey_frames():
    pytest.importorskip("ale_py")
    assert registry.describe("ALE/Pong-v5").obs == Space((84, 84, 1), "uint8")
    assert registry.describe("PongNoFrameskip-v4").obs == Space((210, 160, 3), "uint8")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("CartPole", "CartPole-v1"),
        ("LunarLander-v2", "LunarLander-v3"),
        ("dreamfleet.envs.probe:Delaid-v0", "dreamfleet.envs.probe:Delayed-v0"),
    ],
)
def test_a_mistyped_id_names_the_nearest(typed, meant):
    with pytest.raises(UserError) as error:
        registry.describe(typed)
    expected = f'env "{typed}" not found. Nearest: {meant}. See: launch.py list envs. '
    expected += "An environment of your own is named module:EnvId."
    assert str(error.value) == expected


def test_an_argument_that_an_environment_does_not_take_is_named():
    with pytest.raises(
        UserError, match=r"could not be built with gravitty=9.8: .*'gravitty'\. Lea"
    ):
        registry.describe("CartPole-v1", gravitty=9.8)


def test_the_list_holds_the_newest_version_of_each():
    known = registry.known()
    assert known == sorted(set(known))
    assert "CartPole-v1" in known and "CartPole-v0" not in known


MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("Own-v0", CartPoleEnv)
"""


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_an_environment_of_ones_own_is_found_from_the_working_folder(in_folder):
    (in_folder / "own_module.py").write_text(MODULE)
    assert registry.describe("own_module:Own-v0").action.n == 2


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        (
            "misspelt",
            "x = undefined_name",
            "failed to import. NameError: name 'undefined_name' is not defined",
        ),
        ("garbled", "def broken(:", "failed to import. SyntaxError"),
        ("lacking", "import no_such_package.inner", "Run: pip install no_such_package"),
    ],
)
def test_a_module_that_fails_to_import_is_named_with_its_error(in_folder, name, source, expected):
    (in_folder / f"{name}.py").write_text(source)
    with pytest.raises(UserError) as error:
        registry.describe(f"{name}:Own-v0")
    assert name in str(error.value) and expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_module_and_a_missing_package_give_different_messages():
    with pytest.raises(UserError, match=r'env module "no_such.module" not found: "no_such"'):
        registry.describe("no_such.module:Own-v0")


def test_a_missing_package_is_named_with_a_pip_command(in_folder):
    (in_folder / "needy.py").write_text(
        "import gymnasium\n"
        "def make(**kwargs): import no_such_package\n"
        "def depends(**kwargs): raise gymnasium.error.DependencyNotInstalled('pip install it')\n"
        "gymnasium.register('Needy-v0', make)\n"
        "gymnasium.register('Depends-v0', depends)\n"
    )
    with pytest.raises(UserError, match="Run: pip install no_such_package"):
        registry.describe("needy:Needy-v0")
    with pytest.raises(UserError, match="pip install it"):
        registry.describe("needy:Depends-v0")


def test_importing_the_package_does_not_import_gymnasium():
    code = "import dreamfleet.envs, sys; sys.exit('gymnasium' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["env_id", "id", "self", "disable_env_checker", "name"])
def test_an_environment_may_have_arguments_of_any_name(name):
    with pytest.raises(UserError, match=f"CartPole-v1.* could not be built with {name}="):
        registry.describe("CartPole-v1", **{name: "x"})


def test_spaces_that_raise_are_named():
    class Late(CartPoleEnv):
        @property
        def observation_space(self):
            raise RuntimeError("known after reset")

        @observation_space.setter
        def observation_space(self, space):
            pass

    gym.register("Late-v0", Late)
    with pytest.raises(UserError, match=r"Late-v0.* could not be built: RuntimeError: known after"):
        registry.describe("Late-v0")


@pytest.mark.parametrize("error", [SystemExit(3), RuntimeError("no window")])
def test_exceptions_in_close_are_ignored(error):
    class Clings(CartPoleEnv):
        def close(self):
            raise error

    gym.register("Clings-v0", Clings)
    assert registry.describe("Clings-v0").action.n == 2
    GymVector.to_play("Clings-v0", 2).close()
    gym.registry.pop("Clings-v0")
