from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageSequence

from dreamfleet.runtime.dream_pictures import (
    LAST_MS,
    LINE,
    Dream,
    save_curves,
    save_film,
    save_strip,
)
from dreamfleet.runtime.dream_report import compare, cut

CONTEXT, STEPS, LENGTH = 2, 9, 8  # an episode of 8 rows ends before the dream does
SIZE = (24, 40)


def frame(t: int, shade: int) -> np.ndarray:
    """Returns an image with a bright bar at place `t`, on a background of brightness `shade`."""
    pixels = np.full((*SIZE, 3), shade, np.uint8)
    pixels[:, 4 * t : 4 * t + 4] = (250, 120, 10 * t)
    return pixels


@pytest.fixture
def dream() -> Dream:
    """A dream of an episode of images, whose dreamed frames have a brighter background."""
    last = np.arange(LENGTH) == LENGTH - 1
    rows = {
        "obs": np.stack([frame(t, 0) for t in range(LENGTH)]),
        "reward": np.arange(LENGTH, dtype=np.float32),
        "terminal": last,
        "last": last,
    }
    windows = cut([rows], CONTEXT, STEPS)
    predicted = {
        "obs": np.stack([frame(t, 90) for t in range(CONTEXT, CONTEXT + STEPS)])[None],
        "reward": np.ones((1, STEPS), np.float32),
        "terminal": np.zeros((1, STEPS), np.float32),
    }
    return Dream.of(windows, predicted, 0, "test")


def shown(pixels: np.ndarray, scale: int) -> np.ndarray:
    return np.kron(pixels, np.ones((scale, scale, 1), np.uint8))


def test_a_film_shows_real_frames_on_the_left_and_the_dream_on_the_right(dream, tmp_path):
    save_film(tmp_path / "film.gif", dream, "obs")
    with Image.open(tmp_path / "film.gif") as film:
        frames = [np.array(each.convert("RGB")) for each in ImageSequence.Iterator(film)]
        assert film.info["duration"] == LAST_MS  # of the newest frame
    assert len(frames) == LENGTH
    height, width = 6 * SIZE[0], 6 * SIZE[1]
    for t, picture in enumerate(frames):
        assert picture.shape[1] == 2 * width and picture.shape[0] > height + LINE
        np.testing.assert_array_equal(picture[:height, :width], shown(frame(t, 0), 6))
        right = frame(t, 0 if t < CONTEXT else 90)
        np.testing.assert_array_equal(picture[:height, width:], shown(right, 6))
        for half in (picture[height:, :width], picture[height:, width:]):
            assert half.min() < 100 < half.max()  # black text on white


def test_a_strip_has_real_frames_above_the_dream_that_begins_after_the_first_column(
    dream, tmp_path
):
    save_strip(tmp_path / "strip.png", dream, "obs")
    with Image.open(tmp_path / "strip.png") as opened:
        picture = np.array(opened)
    height, width = 2 * SIZE[0], 2 * SIZE[1]
    columns = range(CONTEXT - 1, LENGTH)
    assert picture.shape == (LINE + 2 * height, len(columns) * width, 3)
    for place, t in enumerate(columns):
        column = picture[LINE:, place * width : (place + 1) * width]
        np.testing.assert_array_equal(column[:height], shown(frame(t, 0), 2))
        below = frame(t, 0 if t < CONTEXT else 90)
        np.testing.assert_array_equal(column[height:], shown(below, 2))


def test_a_long_dream_has_a_column_per_few_steps(tmp_path):
    length = 48
    rows = {
        "obs": np.stack([np.full((8, 8, 1), 5 * t, np.uint8) for t in range(length)]),
        "reward": np.zeros(length, np.float32),
        "terminal": np.zeros(length, bool),
    }
    windows = cut([rows], 3, 45)
    predicted = {"obs": windows.real("obs") + 0.4, "reward": np.zeros((1, 45))}
    predicted["terminal"] = predicted["reward"]
    save_strip(tmp_path / "strip.png", Dream.of(windows, predicted, 0, ""), "obs")
    with Image.open(tmp_path / "strip.png") as opened:
        picture = np.array(opened)
    assert picture.shape == (LINE + 2 * 96, 10 * 96, 3)
    for row in (LINE + 48, LINE + 144):  # predictions are rounded
        np.testing.assert_array_equal(picture[row, 48::96, 0], 5 * np.arange(2, length, 5))


def curves_of(dream: Dream, tmp_path, size: int, **more: np.ndarray) -> np.ndarray:
    """Returns the picture of the curves of a dream of vectors with `size` numbers."""
    pytest.importorskip("matplotlib")
    rows = {**dream.rows, "obs": np.random.default_rng(0).normal(size=(LENGTH, size))}
    windows = cut([rows], CONTEXT, LENGTH - CONTEXT)
    predicted = {"reward": windows.real("reward"), "terminal": windows.real("terminal") * 1.0}
    predicted |= {"obs": windows.real("obs")} if size else {}
    report = compare(windows, {**predicted, **more}, [rows])
    assert report["true_for"] == (LENGTH - CONTEXT if size else None)
    save_curves(tmp_path / "curves.png", Dream.of(windows, predicted, 0, "title"), report)
    with Image.open(tmp_path / "curves.png") as opened:
        return np.array(opened.convert("RGB"))


def test_curves_have_a_panel_for_each_of_at_most_eight_numbers(dream, tmp_path):
    heights = [curves_of(dream, tmp_path, size).shape[0] for size in (0, 3, 8, 30)]
    assert heights[0] < heights[1] < heights[2] == heights[3]  # 2, 6, 11 and 11 panels
    assert len(np.unique(curves_of(dream, tmp_path, 3).reshape(-1, 3), axis=0)) > 10


def test_the_numbers_are_the_first_that_change():
    rows = {
        "obs": np.stack([np.arange(20.0)] * 6),
        "reward": np.zeros(6),
        "terminal": np.zeros(6, bool),
    }
    rows["obs"][:, 3::2] += np.arange(6)[:, None]
    windows = cut([rows], 2, 4)
    predicted = {"obs": windows.real("obs") + 1, "reward": np.zeros((1, 4))}
    predicted["terminal"] = predicted["reward"]
    numbers = Dream.of(windows, predicted, 0, "").numbers()
    assert [name for name, _, _ in numbers] == [f"obs[{i}]" for i in range(3, 19, 2)]
    for i, (_, real, dreamed) in enumerate(numbers):
        np.testing.assert_array_equal(real, rows["obs"][:, 3 + 2 * i])
        np.testing.assert_array_equal(dreamed, real[2:] + 1)
