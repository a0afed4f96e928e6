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
from tests.model.test_attacks import PROOFS_BY_ATTACK

#: What each family has to come to at least, so that none passes by exploring nothing.
LEAST: dict[str, dict[str, int]] = {
    "everything, in a new store": {"states": 48_000, "images": 58_000, "damages": 570_000},
    "everything, in a used store": {
        "states": 19_000,
        "images": 21_000,
        "damages": 250_000,
        "replays": 15_000,
    },
    "everything, with an unwritten section": {
        "states": 8_000,
        "images": 9_000,
        "damages": 97_000,
        "replays": 5_100,
    },
    "three operations": {"states": 160_000, "images": 190_000},
    "three operations, CBC": {"states": 21_000, "images": 10_000},
    "three operations, damage": {"states": 18_000, "images": 9_000, "damages": 420_000},
    "three operations, replay": {"states": 21_000, "images": 9_000, "replays": 13_000},
    "a created section": {"states": 6_800, "images": 9_600, "damages": 50_000, "replays": 7_300},
    "several sections at once": {
        "states": 10_000,
        "images": 12_000,
        "damages": 170_000,
        "replays": 5_800,
    },
    "bad headers": {"states": 120_000, "images": 110_000},
    "sections of one copy": {
        "states": 9_400,
        "images": 4_800,
        "damages": 100_000,
        "replays": 7_100,
    },
    "sections of one copy, CBC": {"states": 7_300, "images": 11_000, "damages": 54_000},
    "windows": {"states": 9_300, "images": 12_800, "damages": 120_000, "replays": 5_700},
    "windows, CBC": {"states": 37_000, "images": 100_000},
    "three sections": {"states": 32_000, "images": 43_000, "replays": 24_000},
    "four puts": {"states": 29_000, "images": 26_000, "replays": 33_000},
    "growth": {"states": 9_600, "images": 9_700, "damages": 68_000, "replays": 10_000},
    "structure, four crashes": {"states": 10_000, "images": 34_000},
    "names": {"states": 2_600, "images": 3_300, "damages": 9_000},
}


#: Where a part of a closed store can be set back unnoticed: a torn put to a single copy, to the
#: blob that it tore.
SET_BACK_THOUGH_CLOSED = {"sections of one copy"}


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
    assert set(PROOFS) | set(PROOFS_BY_ATTACK) | initialising == set(SWITCHES)


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
