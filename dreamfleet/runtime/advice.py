"""Finds which part of a run limits its speed, from the time that each part spends waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LONG: Final = 0.5  # a part that waits at least this fraction of its time is not the limit

Pair = tuple[str, str]  # the role that waits, and the role or replay that it waits for


@dataclass(frozen=True)
class Rule:
    """A piece of advice on how to make a run faster, and the waiting times that lead to it."""

    long: tuple[Pair, ...]  # pairs that wait at least `LONG`
    short: tuple[Pair, ...]  # pairs that wait less
    advice: str


# The first rule that fits is the advice. An actor waits for the replay when the rows that are there
# have not been sampled as often as the agent asks for.
RULES: Final = (
    Rule(
        (("learner", "dreamer"),),
        (("dreamer", "replay"), ("dreamer", "dreamer")),
        "The dreamer is the limit. A faster device (--device cuda) or fewer dreams help; so do "
        "more dreamers (--num-dreamers), except for barlow-dreamer.",
    ),
    Rule(
        (("learner", "replay"), ("actor", "replay")),
        (),
        "Training the world model is the limit. A faster device (--device cuda) or fewer updates "
        "per step help; more actors do not.",
    ),
    Rule(
        (("learner", "replay"),),
        (),
        "Collecting rows is the limit. More actors (--num-actors) help.",
    ),
    Rule(
        (("actor", "replay"),),
        (),
        "Learning is the limit: the actors have reached the replay ratio. A faster learner "
        "(--device cuda) or fewer updates per step help; more actors do not.",
    ),
)


def advice(waits: Mapping[str, float]) -> str:
    """Returns one or two sentences on how to make a run faster, or "" if there is no advice.

    waits: how long parts of the run wait for each other. `{"learner → replay": 0.6}` means that the
    learner waits for the replay for 60% of its time.
    """
    for rule in RULES:
        if all(waited(waits, pair) >= LONG for pair in rule.long) and all(
            waited(waits, pair) < LONG for pair in rule.short
        ):
            return rule.advice
    return ""


def waited(waits: Mapping[str, float], pair: Pair) -> float:
    """Returns how long one part of a run waits for another part, as a fraction of its time.

    pair: the part that waits and the awaited part, such as ("learner", "replay"). waits: pairs →
    fractions of time. With `{"learner → replay": 0.4, "learner → replay + dreamer": 0.2}` the
    learner waits for the replay for 0.6 of its time.
    """
    role, partner = pair
    return sum(
        share
        for key, share in waits.items()
        if key.partition(" → ")[0] == role and partner in key.partition(" → ")[2].split(" + ")
    )


NAMES: Final = {"actor": "actors", "learner": "learner", "dreamer": "dreamers"}
WAITED_FOR: Final = {
    ("actor", "replay"): "the replay ratio",
    ("learner", "replay"): "rows",
    ("learner", "dreamer"): "dreams",
    ("dreamer", "replay"): "rows",
    ("dreamer", "learner"): "room for dreams",
    ("dreamer", "dreamer"): "the world model",
}


def in_words(pair: str) -> str:
    """Says in words who waits for what: `learner → replay` becomes `learner waits for rows`."""
    role, _, partners = pair.partition(" → ")
    things = [WAITED_FOR.get((role, partner), partner) for partner in partners.split(" + ")]
    name = NAMES.get(role, role)
    verb = "wait" if name.endswith("s") else "waits"
    return f"{name} {verb} for {' and '.join(things)}"
