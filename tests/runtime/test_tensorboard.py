from __future__ import annotations

from dreamfleet.runtime.tensorboard import TensorBoard, scalars


def test_numbers_are_grouped_and_the_rest_is_left_out():
    event = {
        "kind": "episode",
        "env_steps": 7,
        "return": 3,
        "loss/critic": 0.5,
        "note": "x",
        "gone": None,
    }
    assert scalars(event) == {"episode/return": 3.0, "loss/critic": 0.5}


def test_events_reach_a_file_that_tensorboard_reads(tmp_path):
    board = TensorBoard(tmp_path)
    board.write({"kind": "episode", "env_steps": 7, "return": 3.0})
    board.close()
    (file,) = tmp_path.glob("events.out.tfevents.*")
    assert b"episode/return" in file.read_bytes()
