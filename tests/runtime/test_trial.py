"""Tests the trial of an agent that rewrites rows, and dreams from the windows of its updates."""

from dataclasses import replace

import numpy as np
import pytest

from dreamfleet.core.errors import UserError
from dreamfleet.runtime.trial import try_agent
from tests.fakes import SPEC, SharingAgent


def test_dreams_are_tried_from_a_sample_of_their_own_and_from_the_windows_of_an_update():
    agent = SharingAgent()
    try_agent("tests.fakes:SharingAgent", SPEC, lambda: agent)
    starts = [given for call, given in agent.seen if call == "dream"]
    assert [sample.data["obs"].shape for sample in starts] == [(2, 1, 2), (4, 4, 2)]


def test_new_values_and_tables_that_break_a_rule_are_refused():
    class Wrong(SharingAgent):
        def learn_world(self, real):
            feedback = super().learn_world(real)
            feedback.rows["written"] = feedback.rows["written"].astype(np.float32)
            return feedback

    with pytest.raises(UserError, match=r"learn_world failed\. .*'written' must be float16, found"):
        try_agent("tests.fakes:Wrong", SPEC, Wrong)

    class Limited(SharingAgent):
        def __init__(self):
            super().__init__()
            real = self.tables["real"]
            policy = replace(real.consumers["policy"], samples_per_step=0.25)
            consumers = {**real.consumers, "policy": policy}
            self.tables["real"] = replace(real, consumers=consumers)

    with pytest.raises(UserError, match=r"building it failed\. .* must have samples_per_step None"):
        try_agent("tests.fakes:Limited", SPEC, Limited)
