"""Tests that versions of weights only rise, and that only newer weights are returned."""

from dreamfleet.learner.weight_store import LocalWeights


def test_versions_rise_per_group_from_one():
    store = LocalWeights()
    assert [store.publish("policy", {}) for _ in range(3)] == [1, 2, 3]
    assert store.publish("world", {}) == 1


def test_only_newer_weights_are_returned():
    store = LocalWeights()
    assert store.latest("policy", have=0) is None
    store.publish("policy", {"w": "old"})
    store.publish("policy", {"w": "new"})
    assert store.latest("policy", have=1) == (2, {"w": "new"})
    assert store.latest("policy", have=2) is None


def test_weights_are_wanted_unless_nobody_reads_them():
    assert LocalWeights().wanted("policy")
    assert not LocalWeights(read=False).wanted("policy")
