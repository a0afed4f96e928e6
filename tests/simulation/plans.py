"""What is drawn from a seed: where the image lies, and what goes wrong how often."""

from __future__ import annotations

import random

from tests.simulation.world import Plan

#: Kinds of faults, and mean steps between two of them, where they happen at all.
FAULTS = {
    "kill the owner": 2500,
    "stop the owner": 3500,
    "kill a client": 1200,
    "cut the power": 3000,
    "bad disk": 1500,
    "kill the storage": 2000,
    "cut the power of the storage": 2500,
    "cut the link": 2500,
    "reset a connection": 800,
    "take over": 2500,
}


def plan_of(seed: int) -> Plan:
    """Return the plan of a seed: some kinds of faults, and not all of them at once."""
    draw = random.Random(seed)
    place = draw.choice(("local", "nbd", "nbd", "shared"))
    left_out = {
        "local": (
            "kill the storage",
            "cut the power of the storage",
            "cut the link",
            "reset a connection",
            "take over",
        ),
        "nbd": ("take over",),
        "shared": (
            "kill the storage",
            "cut the power of the storage",
            "cut the link",
            "reset a connection",
        ),
    }[place]
    pace = draw.choice((0.5, 1.0, 3.0))
    faults = {
        name: steps * pace
        for name, steps in FAULTS.items()
        if name not in left_out and draw.random() < 0.5
    }
    return Plan(
        place=place,
        encrypted=place != "shared" and draw.random() < 0.15,
        structure=place != "shared" and draw.random() < 0.4,
        clients=draw.choice((1, 2, 4)),
        interleave=draw.choice((0.05, 0.3, 1.0)),
        stall=draw.choice((0.0, 0.0, 0.002, 0.02)),
        stalled=draw.choice(("", "", "owner", "storage")),
        stall_seconds=draw.choice((0.001, 0.02, 0.5)),
        faults=faults,
    )
