"""Damage together with replay, and successive replays: what section 7 lists, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.model.attacks import Past, Target
from tests.model.disk import EMPTY, NOTHING, Block, Free, Mendable, Record, written
from tests.model.explore import Scenario
from tests.model.exposure import Exposure, explain
from tests.model.plans import PLANS
from tests.model.reader import read
from tests.model.rules import ALL, SWITCHES
from tests.model.scenarios import UNWRITTEN, A, B, menu, new_store, used_store
from tests.model.siege import Plan, besiege
from tests.model.writing import Store

if TYPE_CHECKING:
    from tests.model.disk import Disk
    from tests.model.siege import Findings

#: What each plan has to come to at least, so that none passes by attacking nothing.
LEAST: dict[str, dict[str, int]] = {
    "puts, in every way": {
        "attacks": 90_000,
        "disks attacked in every way": 15,
        "undetected": 1_000,
    },
    "structure, in every way": {
        "attacks": 40_000,
        "disks attacked in every way": 9,
        "undetected": 1_100,
    },
    "growth, in every way": {
        "attacks": 39_000,
        "disks attacked in every way": 12,
        "undetected": 900,
    },
    "sections of one copy, in every way": {
        "attacks": 31_000,
        "disks attacked in every way": 8,
        "undetected": 320,
    },
    "everything, a part set back and heads damaged": {"attacks": 110_000, "undetected": 1_300},
    "an unwritten section, a part set back and heads damaged": {
        "attacks": 24_000,
        "undetected": 2_000,
    },
    "puts, again and again": {"attacks": 130_000, "disks": 520, "undetected": 4_800},
    "puts, again and again, pinned": {"attacks": 70_000, "disks": 290, "undetected": 3_700},
    "structure, again and again": {"attacks": 43_000, "disks": 260, "undetected": 900},
}


@cache
def _findings(name: str) -> Findings:
    return besiege(PLANS[name].plan)


@pytest.mark.parametrize("name", PLANS)
def test_what_is_undetected_is_what_section_7_lists(name: str) -> None:
    findings = _findings(name)
    print(name, dict(findings.counts))
    assert not findings.unexplained, "\n".join(map(str, findings.unexplained))
    assert set(findings.examples) == PLANS[name].exposures
    few = {what: least for what, least in LEAST[name].items() if findings.counts[what] < least}
    assert not few, f"{few} were expected, of {dict(findings.counts)}"


@pytest.mark.parametrize("name", PLANS)
def test_pins_find_what_the_store_does_not(name: str) -> None:
    findings = _findings(name)
    assert "root" not in findings.unpinned
    # Only where a store that was set back has been written to since, and the pin was not asked, is
    # its generation what it was before.
    plan = PLANS[name].plan
    assert ("generation" in findings.unpinned) == (plan.rounds > 0 and not plan.pinned)


def test_each_class_has_a_plan_that_finds_it() -> None:
    assert set().union(*(plan.exposures for plan in PLANS.values())) == set(Exposure)
    assert set(LEAST) == set(PLANS)


#: Plans that find what goes wrong without a rule of damage.
PROOFS_BY_ATTACK = {
    "damage_may_hide_what_is_newer": Plan(
        Scenario(new_store(A, free=1), menu("put A, close"), operations=2, crashes=0),
        few_parts=True,
    ),
}


@pytest.mark.parametrize("rule", PROOFS_BY_ATTACK)
def test_rule_of_damage(rule: str) -> None:
    plan = PROOFS_BY_ATTACK[rule]
    assert not besiege(plan).unexplained
    scenario = replace(plan.scenario, rules=ALL.without(rule))
    findings = besiege(replace(plan, scenario=scenario), most_unexplained=1)
    assert findings.unexplained, f"nothing fails without {rule}"
    print(f"{rule} [{SWITCHES[rule][0]}]: {SWITCHES[rule][1]}\n    {findings.unexplained[0]}")


class Case(NamedTuple):
    """A history, and what is done to blocks: `back` to what they held first, or `lost`."""

    start: Disk
    history: str
    blocks: dict[int, str]
    #: Epochs of the last operation that are flushed before the power fails; 0 for all.
    epochs: int = 0


#: The shortest history of each class.
SHORTEST = {
    Exposure.WHOLE: Case(new_store(A), "put A, close", {0: "back", 1: "back", 3: "back"}),
    Exposure.SINCE_D: Case(new_store(A), "put A", {3: "back"}),
    Exposure.UNACKNOWLEDGED: Case(new_store(A, free=3), "create C", {4: "back"}, epochs=3),
    Exposure.LOST: Case(new_store(A, B), "put A, put B", {3: "back", 5: "lost"}),
    Exposure.HEADERS: Case(new_store(A), "put A, close", {0: "back", 1: "lost", 3: "back"}),
    Exposure.GROWTH: Case(new_store(A, room=3), "grow 3, create C", {0: "back", 1: "back"}),
}


def _target(case: Case) -> Target:
    disk, disks = case.start, [case.start]
    for name, operation in menu(case.history).items():
        change = operation(Store(disk, read(disk, ALL), ALL, number=1))
        assert change is not None
        last = case.history.endswith(name) and case.epochs
        for epoch in change.epochs[: case.epochs] if last else change.epochs:
            disk = written(disk, epoch)
            disks.append(disk)
    pasts = [Past(past, read(past, ALL)) for past in reversed(disks[:-1])]
    return Target(disk, read(disk, ALL), pasts)


def _attacked(case: Case, disk: Disk) -> Disk:
    changes = []
    for place, what in case.blocks.items():
        if what == "back":
            changes.append((place, case.start[place]))
        else:
            changes.append((place, EMPTY if place < 2 else Block(NOTHING, disk[place].rest)))
    return written(disk, changes)


def _verdict(case: Case, blocks: dict[int, str]) -> str:
    target = _target(case)
    image = _attacked(case._replace(blocks=blocks), target.disk)
    return target.judge(image, lambda disk: read(disk, ALL)).what


@pytest.mark.parametrize("exposure", Exposure)
def test_shortest_history(exposure: Exposure) -> None:
    case = SHORTEST[exposure]
    target = _target(case)
    image = _attacked(case, target.disk)
    what, left = target.judge(image, lambda disk: read(disk, ALL))
    assert what == "undetected"
    assert left is not None
    assert explain(target, image, left) is exposure
    for place in case.blocks:  # nothing less will do
        less = {other: how for other, how in case.blocks.items() if other != place}
        assert _verdict(case, less) in ("harmless", "refused", "damaged heads", "reported")


@pytest.mark.parametrize(
    ("history", "what"), [("put A, put B", "refused"), ("put B, put A", "undetected")]
)
def test_one_flipped_bit_in_free_space_changes_nothing(history: str, what: str) -> None:
    case = Case(new_store(A, B, free=2), history, {3: "back"})
    target = _target(case)
    image = _attacked(case, target.disk)
    free = image[6].head
    assert isinstance(free, Free)
    harmed = written(image, [(6, Block(Mendable(free), NOTHING))])
    for disk in (image, harmed):
        assert target.judge(disk, lambda disk: read(disk, ALL)).what == what


def test_lost_head_leaves_the_store_unknown_unless_the_root_fits_c67() -> None:
    target = _target(Case(used_store(A, B), "put A, put B, close", {}))
    record = target.directory.section("B").newest  # type: ignore[union-attr]
    older = target.directory.section("B").older  # type: ignore[union-attr]
    for lost, fresh in ((record.position, False), (older.position, True)):
        image = written(target.disk, [(lost, Block(NOTHING, target.disk[lost].rest))])
        left = read(image, ALL)
        assert left.damaged == [lost]
        assert left.fresh is fresh
        assert "B" not in {name for name, _ in left.answered()}
        assert ("A" in {name for name, _ in left.answered()}) is fresh


def test_permitted_blobs_are_whole_ones_only() -> None:
    disk = new_store(A, UNWRITTEN, B._replace(name="C"))
    (place,) = [
        position
        for position, block in enumerate(disk)
        if isinstance(block.head, Record) and block.head.generation and block.head.name == "C"
    ]
    left = read(written(disk, [(place, Block(NOTHING, disk[place].rest))]), ALL)
    assert left.damaged == [place]
    assert {name for name, _ in left.view} == {"A", "B", "C"}
    assert {name for name, _ in left.permitted()} == {"A"}


def test_commit_that_is_rolled_back_does_not_count_for_a_pin() -> None:
    case = Case(used_store(A), "put A", {})
    target = _target(case)
    record = target.directory.section("A").newest  # type: ignore[union-attr]
    torn = written(target.disk, [(record.position, Block(record.record, NOTHING))])
    left = read(torn, ALL)
    assert left.generation == target.directory.generation
    assert left.counted == read(case.start, ALL).counted < left.generation
