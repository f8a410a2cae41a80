"""Tests how observations are encoded for an agent, and how the agent's actions are decoded."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Text,
    Tuple,
)
from gymnasium.vector.utils import concatenate, create_empty_array

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Space
from dreamfleet.envs import spaces


@pytest.mark.parametrize(
    ("space", "seen"),
    [
        (Box(0, 255, (8, 8, 3), np.uint8), Space((8, 8, 3), "uint8")),
        (Box(-np.inf, np.inf, (3,), np.float64), Space((3,), "float32")),
        (Box(0, 9, (2, 2), np.int64), Space((4,), "float32")),
        (Box(0, 1, (), np.float32), Space((1,), "float32")),
    ],
)
def test_boxes_are_observed_as_pixels_or_float32(space, seen):
    assert spaces.observations("Some-v0", space) == {"obs": seen}


TWO = Discrete(2)
CARDS = Dict(hand=MultiDiscrete([2, 3]), seat=Discrete(2, start=1), speed=Box(-1, 1, (2,)))


@pytest.mark.parametrize(
    ("space", "seen", "vector"),
    [
        (Discrete(4), 2, [0, 0, 1, 0]),
        (Discrete(4), np.array([2]), [0, 0, 1, 0]),
        (Discrete(3, start=-1), np.int64(-1), [1, 0, 0]),
        (MultiDiscrete([2, 3]), np.array([1, 2]), [0, 1, 0, 0, 1]),
        (MultiDiscrete([[2], [2]]), np.array([[1], [0]]), [0, 1, 1, 0]),
        (MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (Tuple([Discrete(2), Box(0, 9, (2, 1), np.int16)]), (1, [[7], [8]]), [0, 1, 7, 8]),
        (
            CARDS,
            {"speed": [0.5, -0.5], "seat": 2, "hand": [0, 1]},
            [1, 0, 0, 1, 0, 0, 1, 0.5, -0.5],
        ),
        (Dict(a=Tuple([Dict(b=Discrete(2))])), {"a": ({"b": 0},)}, [1, 0]),
        (Box(0, 1, (6, 7, 2), np.uint8), np.ones((6, 7, 2), np.uint8), [1] * 84),
        (Box(0, 1, (), np.float64), 0.25, [0.25]),
        (Box(0, 1, (2,), np.float16), np.array([0, 1], np.float16), [0, 1]),
    ],
)
def test_observations_other_than_pictures_become_one_vector(space, seen, vector):
    encode = spaces.Encoder("Some-v0", space)
    assert encode.observations == {"obs": Space((len(vector),), "float32")}
    assert {name: value.tolist() for name, value in encode(seen).items()} == {"obs": vector}


@pytest.mark.parametrize(
    "space",
    [CARDS, Discrete(3, start=-1), MultiDiscrete([[2, 3], [4, 5]]), MultiBinary((2, 2))]
    + [Tuple([Discrete(2), Dict(a=Box(-1, 1, (2, 2)), b=Box(0, 255, (4, 4, 3), np.uint8))])],
)
def test_a_batch_is_encoded_as_its_observations_are_one_by_one(space):
    encode, many = spaces.Encoder("Some-v0", space), [space.sample() for _ in range(5)]
    batch = concatenate(space, many, create_empty_array(space, 5))
    found, each = encode(batch, (5,)), [encode(one) for one in many]
    assert found.keys() == each[0].keys() == encode.observations.keys()
    for name, column in found.items():
        np.testing.assert_array_equal(column, np.stack([one[name] for one in each]))


def test_a_number_of_a_batch_outside_of_its_space_is_named_with_its_place():
    with pytest.raises(spaces.Mismatch, match=r"\[1\]: 7 where") as error:
        spaces.Encoder("Some-v0", Tuple([TWO, Discrete(5)]))(([0, 1, 1], [4, 0, 7]), (3,))
    assert error.value.index == 2


PICTURE = Box(0, 255, (8, 9, 3), np.uint8)
TURNED = Box(0, 255, (3, 8, 9), np.uint8)  # channels first


@pytest.mark.parametrize(
    ("space", "columns"),
    [
        (Dict(camera=PICTURE, speed=Box(-1, 1, (2,))), {"obs": 2, "obs.camera": (8, 9, 3)}),
        (Tuple([PICTURE, TWO]), {"obs": 2, "obs.0": (8, 9, 3)}),
        (
            Dict(arm=Dict(wrist=TURNED, angle=Box(-1, 1, ())), eye=PICTURE, kind=Discrete(4)),
            {"obs": 5, "obs.arm.wrist": (8, 9, 3), "obs.eye": (8, 9, 3)},
        ),
        (Dict(only=TURNED), {"obs": (8, 9, 3)}),
        (Dict(left=PICTURE, right=PICTURE), {"obs": (8, 9, 3), "obs.right": (8, 9, 3)}),
        (Dict(a=Box(-1, 1, (0,)), b=PICTURE), {"obs": (8, 9, 3)}),
        (Dict(grid=Box(0, 255, (2, 3), np.uint8), n=TWO), {"obs": 8}),
    ],
)
def test_each_image_is_a_column_and_all_other_parts_are_one_vector(space, columns):
    encode = spaces.Encoder("Some-v0", space)
    assert [*encode.observations] == [*columns]
    for name, shape in columns.items():
        expected = Space(shape, "uint8") if shape == (8, 9, 3) else Space((shape,), "float32")
        assert encode.observations[name] == expected
    for name, value in encode(space.sample()).items():
        assert value.shape == encode.observations[name].shape


def test_images_and_numbers_of_a_dict_keep_their_values():
    space = Dict(arm=Dict(wrist=TURNED, angle=Box(-9, 9, ())), eye=PICTURE, kind=Discrete(2))
    seen = space.sample()
    found = spaces.Encoder("Some-v0", space)(seen)
    np.testing.assert_array_equal(found["obs.eye"], seen["eye"])
    np.testing.assert_array_equal(found["obs.arm.wrist"], seen["arm"]["wrist"].transpose(1, 2, 0))
    assert found["obs.eye"].dtype == found["obs.arm.wrist"].dtype == np.uint8
    one_hot = [float(seen["kind"] == k) for k in range(2)]
    assert found["obs"].tolist() == [float(seen["arm"]["angle"]), *one_hot]


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        (np.zeros((8, 9, 3)), r"camera: float64 \(8, 9, 3\) where uint8 \(8, 9, 3\) was declared"),
        (np.zeros((9, 8, 3), np.uint8), r"camera: uint8 \(9, 8, 3\) where uint8 \(8, 9, 3\)"),
        ([[1], [2, 3]], "camera: .* is no array"),
    ],
)
def test_an_image_outside_of_its_space_is_named(camera, message):
    encode = spaces.Encoder("Some-v0", Dict(arm=Dict(camera=PICTURE), n=TWO))
    with pytest.raises(spaces.Mismatch, match=rf"an observation arm\.{message}"):
        encode({"arm": {"camera": camera}, "n": 1})


def test_two_images_of_one_name_are_refused():
    space = Dict({"a": Dict(b=PICTURE), "a.b": PICTURE, "n": TWO})
    with pytest.raises(UserError, match=r"several images are called obs\.a\.b\. Rename"):
        spaces.observations("Some-v0", space)


def test_a_grey_picture_gets_a_channel_and_stays_uint8():
    encode = spaces.Encoder("Some-v0", Box(0, 255, (5, 4), np.uint8))
    seen = np.arange(20, dtype=np.uint8).reshape(5, 4)
    assert encode.observations == {"obs": Space((5, 4, 1), "uint8")}
    np.testing.assert_array_equal(encode(seen)["obs"][..., 0], seen)
    with pytest.raises(spaces.Mismatch, match=r"float64 \(5, 4\) where uint8 \(5, 4\)"):
        encode(seen / 255)


def test_channels_in_front_are_moved_to_the_end():
    encode = spaces.Encoder("Some-v0", Box(0, 255, (3, 8, 9), np.uint8))
    seen = np.arange(3 * 8 * 9, dtype=np.uint8).reshape(3, 8, 9)
    assert encode.observations == {"obs": Space((8, 9, 3), "uint8")}
    np.testing.assert_array_equal(encode(seen)["obs"][2, 5], seen[:, 2, 5])
    batch = encode(np.stack([seen, seen]), (2,))
    np.testing.assert_array_equal(batch["obs"][1], encode(seen)["obs"])


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ({"hand": [0, 1], "seat": 3, "speed": [0, 0]}, r"seat: 3 where Discrete\(2, start=1\)"),
        ({"hand": [0, 3], "seat": 1, "speed": [0, 0]}, "hand: 3 where MultiDiscrete"),
        ({"hand": [0, 0.5], "seat": 1, "speed": [0, 0]}, r"hand: float64 \(2,\) where"),
        ({"hand": [0, 1], "seat": "a", "speed": [0, 0]}, "seat: 'a' where"),
        ({"hand": [0, 1], "seat": None, "speed": [0, 0]}, "seat: None where"),
        ({"hand": [0, 1], "seat": 1, "speed": [0]}, r"speed: int64 \(1,\) where"),
        ({"hand": [0, 1], "seat": 1}, "an observation without 'speed'"),
        ((1, 2), "an observation without 'hand'"),
        ({"hand": [0, [1]], "seat": 1, "speed": [0, 0]}, r"hand: \[0, \[1\]\], which is no array"),
        ({"hand": [0, 1], "seat": 1, "speed": [[0], [0, 1]]}, "speed: .* is no array"),
    ],
)
def test_an_observation_outside_of_its_space_is_named_with_its_part(seen, message):
    with pytest.raises(spaces.Mismatch, match=message):
        spaces.Encoder("Some-v0", CARDS)(seen)


def test_every_number_of_a_composite_has_a_name():
    encode = spaces.Encoder("Some-v0", CARDS)
    places = [encode.where(i) for i in (0, 4, 5, 8)]
    assert places == [" at hand[0]", " at hand[4]", " at seat[0]", " at speed[1]"]
    assert spaces.Encoder("Some-v0", Discrete(2)).where(0) == ""


@pytest.mark.parametrize(
    ("space", "remedy"),
    [
        (Text(5), "TransformObservation"),
        (Sequence(Discrete(2)), "TransformObservation"),
        (Dict(a=Text(5)), "TransformObservation"),
        (Discrete(10**7), "TransformObservation"),
        (Dict(), "holds no number"),
        (Dict(a=Box(0, 255, (0, 8, 3), np.uint8)), "holds no number"),
        (Tuple([]), "holds no number"),
    ],
)
def test_an_observation_that_cannot_become_numbers_is_refused_with_a_remedy(space, remedy):
    with pytest.raises(UserError, match=remedy) as error:
        spaces.observations("Some-v0", space)
    assert 'env "Some-v0" observes' in str(error.value) and str(space) in str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        MultiDiscrete([40_000, 40_000]),
        Box(-np.inf, 1, (2,)),
        Box(-np.inf, np.inf, (2, 3)),
        Dict(a=Discrete(2)),
        Text(3),
    ],
)
def test_an_action_space_no_agent_can_act_in_is_named_with_a_remedy(space):
    with pytest.raises(UserError, match=r"gymnasium\.wrappers\.TransformAction\(env, ") as error:
        spaces.action("Some-v0", space)
    assert "Some-v0" in str(error.value) and str(space) in str(error.value)


class Acts(gym.Env):
    observation_space = Discrete(2)

    def __init__(self, space):
        self.action_space = space

    def step(self, action):
        assert self.action_space.contains(action), action
        return 0, 0.0, False, False, {}


@pytest.mark.parametrize(
    "space",
    [Box(-np.inf, np.inf, shape, np.float32) for shape in ((3,), (2, 2))]
    + [Box(-np.inf, 5, (1,), np.float32), Box(0, np.inf, (1,), np.float32)],
)
def test_the_wrapper_that_a_refusal_names_works(space):
    with pytest.raises(UserError) as error:
        spaces.action("Some-v0", space)
    text = str(error.value)
    expression = text[text.index("gymnasium.wrappers.") :].partition(" allows")[0]
    wrapped = eval(expression, {"gymnasium": gym, "env": Acts(space)})
    assert not spaces.action("Some-v0", wrapped.action_space).discrete
    decode = spaces.decoder(wrapped.action_space)
    size = int(np.prod(wrapped.action_space.shape))
    unit = np.array([[-1.0], [0.3], [1.0]], np.float32)
    for own in decode(np.repeat(unit, size, axis=1)):
        if not space.is_bounded("below"):
            wrapped.step(own if space.shape != (1,) else -np.abs(own))


@pytest.mark.parametrize(
    "space",
    [MultiDiscrete([2, 3]), MultiDiscrete([[2, 3], [1, 2]]), MultiBinary(3), MultiBinary((2, 2))]
    + [MultiDiscrete([2, 2], start=[1, -1])],
)
def test_few_combinations_of_actions_become_one_choice(space):
    n = spaces.action("Some-v0", space).n
    own = spaces.decoder(space)(np.arange(n))
    assert len(np.unique(own.reshape(n, -1), axis=0)) == n
    assert all(action in space for action in own)


def test_an_action_without_entries_is_refused():
    with pytest.raises(UserError, match="which holds no number"):
        spaces.action("Some-v0", MultiDiscrete([]))


@pytest.mark.parametrize(
    ("space", "choices"),
    [
        (MultiDiscrete([5] * 8), (5,) * 8),
        (MultiDiscrete([[50, 9], [8, 7]]), (50, 9, 8, 7)),
        (MultiDiscrete([40, 30], start=[-3, 2]), (40, 30)),
        (MultiBinary(11), (2,) * 11),
        (MultiBinary((4, 3)), (2,) * 12),
    ],
)
def test_many_combinations_of_actions_become_a_factored_action(space, choices):
    acts = spaces.action("Some-v0", space)
    assert acts == Space((len(choices),), "int64", choices=choices) and not acts.discrete
    chosen = np.random.default_rng(0).integers(0, choices, (50, len(choices)))
    chosen[0], chosen[1] = 0, np.array(choices) - 1
    own = spaces.decoder(space)(chosen)
    assert own.shape == (50, *space.shape) and all(action in space for action in own)
    start = np.ravel(getattr(space, "start", 0))
    np.testing.assert_array_equal(own.reshape(50, -1) - start, chosen)


def test_a_space_of_1024_combinations_is_one_choice():
    assert spaces.action("Some-v0", MultiBinary(10)) == Space((), "int64", n=1024)
    assert spaces.action("Some-v0", MultiDiscrete([41, 25])).choices == (41, 25)


def test_whole_numbers_of_a_box_have_equal_shares_of_the_action_range():
    space = Box(np.array([0, -1]), np.array([3, 1]), dtype=np.int64)
    unit = np.random.default_rng(0).uniform(-1, 1, (12_000, 2)).astype(np.float32)
    own = spaces.decoder(space)(unit)
    assert own.dtype == np.int64 and all(action in space for action in own[:100])
    for column, options in ((0, 4), (1, 3)):
        counts = np.unique(own[:, column], return_counts=True)[1]
        np.testing.assert_allclose(counts / 12_000, np.full(options, 1 / options), atol=0.02)


def test_discrete_actions_count_from_the_start_of_the_space():
    space = Discrete(3, start=-1)
    assert spaces.action("Some-v0", space).n == 3
    assert spaces.decoder(space)(np.arange(3)).tolist() == [-1, 0, 1]


def test_unit_actions_cover_the_box_exactly_and_never_leave_it():
    low, high = np.array([[-2.0, 0.0], [1.0, -2e38]]), np.array([[2.0, 0.1], [1.0, 2e38]])
    space = Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
    assert spaces.action("Some-v0", space) == Space((4,), "float32")
    decode = spaces.decoder(space)
    unit = np.stack([-np.ones(4), np.zeros(4), np.ones(4), 1.5 * np.ones(4)]).astype(np.float32)
    own = decode(unit)
    assert own.shape == (4, 2, 2) and own.dtype == np.float32
    assert all(action in space for action in own)
    np.testing.assert_allclose(own[0], space.low)
    np.testing.assert_allclose(own[1], [[0.0, 0.05], [1.0, 0.0]])
    np.testing.assert_allclose(own[2], space.high)
