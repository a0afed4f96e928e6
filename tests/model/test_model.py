"""All rules in force: no history fails. Any one rule off: one does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.model.disk import CBC, NOTHING, PLAIN, Block, Body, Piece, SectionId, crash_images
from tests.model.explore import explore
from tests.model.initialising import initialise_failures
from tests.model.proofs import PROOFS
from tests.model.rules import ALL, SWITCHES
from tests.model.scenarios import FAMILIES

#: What each family has to come to at least, so that none passes by exploring nothing.
LEAST: dict[str, dict[str, int]] = {
    "everything, in a new store": {
        "states": 31_000,
        "images": 24_000,
        "damages": 356_000,
        "replays": 6_300,
    },
    "everything, in a used store": {
        "states": 31_000,
        "images": 24_000,
        "damages": 363_000,
        "replays": 6_400,
    },
    "everything, with an unwritten section": {
        "states": 2_800,
        "images": 2_300,
        "damages": 34_000,
        "replays": 1_400,
    },
    "three operations": {"states": 107_000, "images": 88_000},
    "three operations, CBC": {"states": 114_000, "images": 92_000},
    "three operations, damage": {"states": 15_000, "images": 5_900, "damages": 457_000},
    "three operations, replay": {"states": 87_000, "images": 78_000, "replays": 92_000},
    "bad headers": {"states": 76_000, "images": 51_000},
    "sections of one copy": {
        "states": 5_900,
        "images": 4_800,
        "damages": 52_000,
        "replays": 4_200,
    },
    "sections of one copy, CBC": {"states": 6_800, "images": 5_900, "damages": 57_000},
    "windows, damage": {"states": 4_000, "images": 1_900, "damages": 136_000},
    "windows, replay": {"states": 52_000, "images": 141_000, "replays": 23_000},
    "windows, three operations, CBC": {"states": 173_000, "images": 581_000},
    "three sections": {"states": 30_000, "images": 43_000, "replays": 22_000},
    "four puts": {"states": 23_000, "images": 20_000, "replays": 25_000},
    "growth": {"states": 5_000, "images": 4_400, "damages": 46_000, "replays": 4_800},
    "structure, four crashes": {"states": 3_000, "images": 5_200},
    "names": {"states": 1_500, "images": 1_300, "damages": 6_000},
}


#: Where a part of a closed store can be set back unnoticed: a torn put to a single copy, to the
#: blob that it tore; both header copies, if nothing but they and the grown space changed since.
SET_BACK_THOUGH_CLOSED = {"sections of one copy", "growth"}


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_goes_wrong(family: str) -> None:
    outcome = explore(FAMILIES[family])
    print(family, dict(outcome.counts))
    assert not outcome.failures, "\n".join(map(str, outcome.failures))
    assert outcome.complete
    few = {what: least for what, least in LEAST[family].items() if outcome.counts[what] < least}
    assert not few, f"{few} were expected, of {dict(outcome.counts)}"
    if family not in SET_BACK_THOUGH_CLOSED:
        assert not outcome.counts["replays unavoidable, of a closed store"]


@pytest.mark.parametrize("rule", PROOFS)
def test_rule(rule: str) -> None:
    proof = PROOFS[rule]
    without_others = ALL.without(*proof.besides)
    control = explore(replace(proof.scenario, rules=without_others))
    assert not control.failures, f"with the rule: {control.failures[0]}"
    assert control.complete

    outcome = explore(replace(proof.scenario, rules=without_others.without(rule)), failures=1)
    assert outcome.failures, f"nothing fails without {rule}"
    failure = outcome.failures[0]
    print(f"{rule} [{SWITCHES[rule][0]}]: {SWITCHES[rule][1]}\n    {failure}")
    assert failure.history


def test_initialising_leaves_no_container_or_all_of_it() -> None:
    counts: Counter[str] = Counter()
    assert not initialise_failures(ALL, counts)
    assert counts["images"] > 1_000


@pytest.mark.parametrize("rule", ["old_headers_are_zeroed_first", "headers_come_last"])
def test_rule_of_initialising(rule: str) -> None:
    failures = initialise_failures(ALL.without(rule), Counter(), crashes=1)
    assert failures, f"nothing fails without {rule}"
    print(f"{rule} [{SWITCHES[rule][0]}]: {SWITCHES[rule][1]}\n    {failures[0]}")
    assert failures[0].history


def test_every_switch_has_a_proof() -> None:
    initialising = {"old_headers_are_zeroed_first", "headers_come_last"}
    assert set(PROOFS) | initialising == set(SWITCHES)


def test_every_family_has_a_minimum() -> None:
    assert set(LEAST) == set(FAMILIES)


def test_exploring_is_deterministic() -> None:
    scenario = FAMILIES["names"]
    first, second = explore(scenario), explore(scenario)
    assert first.counts == second.counts
    assert list(first.steps) == list(second.steps)


def test_limit_ends_exploring_and_says_so() -> None:
    outcome = explore(replace(FAMILIES["names"], limit=100))
    assert outcome.counts["states"] == 100
    assert not outcome.complete


def test_crash_images_are_all_mixtures_of_atoms() -> None:
    section = SectionId("A", 0, 0)
    old, new = (
        Block(Body(Piece(section, generation, 0, 0), 0), Body(Piece(section, generation, 0, 0), 1))
        for generation in (1, 2)
    )
    disk = (old,) * 3

    images = set(crash_images(disk, [(2, new)], PLAIN))
    assert images == {
        (old, old, block)
        for block in (old, new, Block(old.head, new.rest), Block(new.head, old.rest))
    }

    garbled = set(crash_images(disk, [(2, new)], CBC))
    assert garbled == {
        (old, old, block)
        for block in (old, new, Block(old.head, NOTHING), Block(new.head, NOTHING))
    }

    both = set(crash_images((old,) * 4, [(2, new), (3, new)], PLAIN))
    assert len(both) == 4 * 4
