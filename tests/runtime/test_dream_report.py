from __future__ import annotations

import numpy as np
import pytest

from dreamfleet.runtime.dream_report import compare, cut, deviation, in_lines, true_for

RNG = np.random.default_rng(0)


def episode(length: int, terminal: bool = True, size: int = 3):
    """Returns the rows of an episode with random observations: columns (length, …)."""
    last = np.arange(length) == length - 1
    return {
        "obs": (RNG.normal(size=(length, size)) * [1, 10, 0][:size]).astype(np.float32),
        "reward": np.arange(length, dtype=np.float32),
        "action": np.arange(length),
        "first": np.arange(length) == 0,
        "last": last,
        "terminal": last & terminal,
    }


def exact(windows):
    """Returns predictions that are equal to the real rows."""
    names = ("obs", "reward", "terminal")
    return {name: windows.real(name).astype(np.float32) for name in names}


def test_windows_predict_each_row_behind_the_context_once_and_know_what_came_before():
    episodes = [episode(12), episode(3), episode(8)]
    windows = cut(episodes, context=3, steps=4)
    assert list(windows.episode) == [0, 0, 0, 2, 2]  # an episode of 3 rows has nothing to predict
    assert list(windows.begin) == [3, 7, 11, 3, 7]
    for w, (number, begin) in enumerate(zip(windows.episode, windows.begin, strict=True)):
        rows, n = episodes[number], windows.inside[w].sum()
        for name, column in rows.items():
            np.testing.assert_array_equal(
                windows.rows[name][w, : 3 + n], column[begin - 3 : begin + n]
            )
    predicted = np.concatenate([windows.real("action")[w][windows.inside[w]] for w in range(3)])
    np.testing.assert_array_equal(predicted, np.arange(3, 12))
    assert windows.inside.sum() == (12 - 3) + (8 - 3)


def test_without_a_long_episode_there_is_no_window():
    windows = cut([episode(4)], context=4, steps=5)
    assert len(windows) == 0


def test_exact_dreams_stay_true_for_all_steps():
    episodes = [episode(20), episode(9)]
    windows = cut(episodes, 2, 6)
    found = compare(windows, exact(windows), episodes)
    assert found["true_for"] == 6
    assert found["obs_error"] == {"obs": [0.0] * 6}
    assert found["reward_error"] == [0.0] * 6
    assert found["reward_sign"] == found["end_right"] == [1.0] * 6
    assert found["ends"] == {"real": 2, "right": 2, "wrong": 0}
    assert all(each["true_for"] == each["steps"] for each in found["each"])


def test_predicting_the_mean_has_an_error_of_one_and_is_true_for_no_step():
    episodes = [episode(1500)]
    windows = cut(episodes, 2, 3)
    predicted = exact(windows)
    predicted["obs"] = np.broadcast_to(episodes[0]["obs"].mean(0), predicted["obs"].shape)
    found = compare(windows, predicted, episodes)
    assert found["obs_error"]["obs"] == pytest.approx([1, 1, 1], abs=0.1)
    assert found["true_for"] == 0


def test_errors_are_root_mean_squares_in_standard_deviations_of_numbers_that_change():
    episodes = [episode(13)]
    windows = cut(episodes, 1, 4)
    predicted = exact(windows)
    error = RNG.normal(size=predicted["obs"].shape)
    predicted["obs"] = predicted["obs"] + error
    predicted["posterior_obs"] = windows.real("obs") + 0.5 * error
    std = episodes[0]["obs"].astype(float).std(0)
    scaled = [error[..., i] / std[i] for i in (0, 1)]  # the third number never changes
    expected = [np.sqrt(np.mean([part[:, step] ** 2 for part in scaled])) for step in range(4)]
    found = compare(windows, predicted, episodes)
    assert found["obs_error"]["obs"] == pytest.approx(expected, rel=1e-5)
    assert found["posterior_error"]["obs"] == pytest.approx(np.array(expected) / 2, rel=1e-5)


def test_rows_behind_the_end_of_an_episode_do_not_count():
    episodes = [episode(6)]
    windows = cut(episodes, 2, 10)
    predicted = exact(windows)
    for name in predicted:
        predicted[name][:, 4:] = 77
    found = compare(windows, predicted, episodes)
    assert found["windows_per_step"] == [1] * 4 + [0] * 6
    assert found["obs_error"]["obs"] == [0.0] * 4 + [None] * 6
    assert found["true_for"] == 4
    assert found["ends"] == {"real": 1, "right": 1, "wrong": 0}


def test_an_end_at_a_wrong_step_is_counted():
    episodes = [episode(8), episode(8, terminal=False)]
    windows = cut(episodes, 2, 6)
    predicted = exact(windows)
    predicted["terminal"] = np.zeros((2, 6))
    predicted["terminal"][:, 4] = 0.9  # one step too early; and the other episode never terminates
    found = compare(windows, predicted, episodes)
    assert found["ends"] == {"real": 1, "right": 0, "wrong": 2}
    assert found["end_right"] == [1, 1, 1, 1, 0, 0.5]


def test_the_sign_of_a_reward_near_zero_is_zero():
    episodes = [episode(6)]
    episodes[0]["reward"] = np.array([0, 2, -2, 0, 2, 0], np.float32)
    windows = cut(episodes, 1, 5)
    predicted = exact(windows)
    predicted["reward"] = np.array([[1.0, 1.0, 0.1, 0.1, 0.3]])
    found = compare(windows, predicted, episodes)
    assert found["reward_sign"] == [1, 0, 1, 0, 0]


def test_the_unit_of_an_image_is_one_number_for_all_pixels():
    frames = RNG.integers(0, 255, (40, 5, 4, 3)).astype(np.uint8)
    frames[:, 0] = 9  # a row of pixels that never changes
    unit = deviation(frames)
    assert unit is not None
    np.testing.assert_allclose(unit, np.sqrt(frames.astype(float).var(0).mean()), rtol=1e-4)
    assert deviation(np.full((4, 3), 7.0)) is None


def test_a_dream_is_true_until_the_first_large_error():
    assert true_for([0.1, 0.5, 0.6, 0.1]) == 2
    assert true_for([0.1, None]) == 1
    assert true_for([0.1, 0.2]) == 2


def test_the_text_has_a_sentence_and_a_row_per_shown_step():
    episodes = [episode(30)]
    windows = cut(episodes, 2, 7)
    predicted = exact(windows)
    predicted["kl"] = np.full((len(windows), 7), 1.25)
    lines = in_lines(compare(windows, predicted, episodes))
    assert lines[0].startswith("Dreams stay true for 7 of 7 steps")
    assert [line.split()[0] for line in lines[1:-1]] == ["step", "1", "2", "3", "5", "7"]
    assert "1.25" in lines[2]
    assert lines[-1] == "Ends: 1 of 1 predicted at the right step, 0 predicted at a wrong step."
    del predicted["obs"]
    (first, *_) = in_lines(compare(windows, predicted, episodes))
    assert first == "The agent predicts no observations: reward, end and KL alone are compared."


def test_windows_that_are_shown_are_spread_evenly_and_not_too_short():
    windows = cut([episode(3 + 9 * 10 + 1), episode(3 + 5)], 3, 10)
    assert windows.inside.sum(1).tolist() == [10] * 9 + [1, 5]
    assert windows.spread(4) == [0, 3, 6, 10]
    assert windows.spread(99) == [*range(9), 10]
