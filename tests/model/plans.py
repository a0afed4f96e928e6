"""What is attacked, and which classes of section 7 that has to come to."""

from __future__ import annotations

from typing import NamedTuple

from tests.model.explore import Scenario
from tests.model.exposure import Exposure
from tests.model.scenarios import EVERYTHING, SINGLE, UNWRITTEN, A, B, menu, new_store, used_store
from tests.model.siege import Plan

_WHOLE, _SINCE_D, _UNACKNOWLEDGED = Exposure.WHOLE, Exposure.SINCE_D, Exposure.UNACKNOWLEDGED
_LOST, _HEADERS, _GROWTH = Exposure.LOST, Exposure.HEADERS, Exposure.GROWTH


class Expected(NamedTuple):
    """A plan, and the classes that its attacks come to: no others, and all of these."""

    plan: Plan
    exposures: set[Exposure]


#: By name. All together take about a minute of one processor.
PLANS: dict[str, Expected] = {
    "puts, in every way": Expected(
        Plan(
            Scenario(
                new_store(A, B, free=1),
                menu("put A, put B, put A+B, close"),
                crashes=1,
                kills=False,
            ),
            disks=24,
            all_images=6_000,
        ),
        {_WHOLE, _SINCE_D, _LOST, _HEADERS},
    ),
    "structure, in every way": Expected(
        Plan(
            Scenario(
                new_store(A, free=3),
                menu("create C, put C, put A, delete C, close"),
                crashes=1,
                kills=False,
            ),
            disks=40,
            all_images=1_500,
        ),
        {_WHOLE, _SINCE_D, _UNACKNOWLEDGED, _LOST, _HEADERS},
    ),
    "growth, in every way": Expected(
        Plan(
            Scenario(
                new_store(A, free=1, room=4),
                menu("grow 2, put A, create C, close"),
                crashes=1,
                kills=False,
            ),
            disks=40,
            all_images=1_500,
        ),
        {_WHOLE, _SINCE_D, _UNACKNOWLEDGED, _LOST, _HEADERS, _GROWTH},
    ),
    "sections of one copy, in every way": Expected(
        Plan(
            Scenario(
                new_store(A, SINGLE, free=3),
                menu("put A, put P, create S single, resize P, close"),
                operations=2,
                crashes=1,
                kills=False,
            ),
            disks=30,
            all_images=1_500,
        ),
        {_WHOLE, _SINCE_D, _UNACKNOWLEDGED, _LOST, _HEADERS},
    ),
    "everything, a part set back and heads damaged": Expected(
        Plan(
            Scenario(
                used_store(A, B, free=5, room=4),
                menu(EVERYTHING),
                operations=2,
                crashes=1,
                kills=False,
            ),
            disks=30,
            few_parts=True,
            several_parts=400,
        ),
        {_WHOLE, _SINCE_D, _LOST, _HEADERS, _GROWTH},
    ),
    "an unwritten section, a part set back and heads damaged": Expected(
        Plan(
            Scenario(
                new_store(A, UNWRITTEN, free=3),
                menu("put A, put B, rename B C, resize B, close"),
                operations=2,
                crashes=1,
                kills=False,
            ),
            disks=30,
            few_parts=True,
            several_parts=400,
        ),
        {_WHOLE, _SINCE_D, _LOST, _HEADERS},
    ),
    "puts, again and again": Expected(
        Plan(
            Scenario(
                new_store(A, B, free=1),
                menu("put A, put B, put A+B, close"),
                operations=1,
                crashes=1,
                kills=False,
            ),
            disks=8,
            all_images=300,
            rounds=2,
        ),
        {_WHOLE, _SINCE_D, _LOST, _HEADERS},
    ),
    "puts, again and again, pinned": Expected(
        Plan(
            Scenario(
                new_store(A, B, free=1),
                menu("put A, put B, put A+B, close"),
                operations=1,
                crashes=1,
                kills=False,
            ),
            disks=8,
            all_images=300,
            rounds=2,
            pinned=True,
        ),
        {_WHOLE, _SINCE_D, _LOST, _HEADERS},
    ),
    "structure, again and again": Expected(
        Plan(
            Scenario(
                new_store(A, free=3, room=2),
                menu("create C, put C, put A, delete C, grow 2, close"),
                operations=2,
                crashes=1,
                kills=False,
            ),
            disks=20,
            all_images=200,
            rounds=1,
        ),
        {_WHOLE, _SINCE_D, _UNACKNOWLEDGED, _LOST, _HEADERS, _GROWTH},
    ),
}
