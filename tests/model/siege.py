"""Sieges: attacks on every disk that an exploration reaches, and again as the owner continues."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from tests.model.attacks import Past, Target
from tests.model.directory import describe
from tests.model.disk import Free, Record, difference, written
from tests.model.explore import Scenario, explore
from tests.model.exposure import Exposure, denied, explain
from tests.model.reader import read
from tests.model.recovery import recovery
from tests.model.writing import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.model.directory import Directory
    from tests.model.disk import Disk
    from tests.model.explore import Outcome, State

_Key = TypeVar("_Key")

#: Readings kept.
_READINGS = 1 << 16


@dataclass(frozen=True, slots=True)
class Plan:
    """How a scenario is attacked.

    Attributes:
        scenario: What leads to the disks that are attacked.
        disks: How many of them at most, evenly chosen.
        all_images: How many images of each that have any parts set back or lost; 0 for none.
        few_parts: Whether one part is set back and up to two heads are damaged.
        several_parts: How many images of each with two and three parts set back; 0 for none.
        rounds: How often the owner continues after an attack, and is attacked again.
        pinned: Whether the owner does so only with the generation that was pinned before, or more.
    """

    scenario: Scenario
    disks: int = 10_000
    all_images: int = 0
    few_parts: bool = False
    several_parts: int = 0
    rounds: int = 0
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A history, an attack on what it leaves, and what is seen then."""

    history: tuple[str, ...]
    attack: str
    detail: str

    def __str__(self) -> str:
        history = " ; ".join(self.history) or "at once"
        return f"{history} ; set back or lost: {self.attack} => {self.detail}"

    @property
    def length(self) -> tuple[int, int]:
        return len(self.history), self.attack.count(",")


@dataclass(slots=True)
class Findings:
    """What became of the attacks.

    Attributes:
        counts: Of disks, attacks and their outcomes.
        examples: The shortest of each class.
        unexplained: Attacks that are not detected for no reason that is known.
        unpinned: Examples that a pin outside the store does not find, by kind of pin.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[Exposure, Example] = field(default_factory=dict)
    unexplained: list[Example] = field(default_factory=list)
    unpinned: dict[str, Example] = field(default_factory=dict)


def besiege(plan: Plan, *, most_unexplained: int = 5) -> Findings:
    """Attack the disks of a plan; stop at so many attacks that nothing explains."""
    return _Siege(plan, most_unexplained).run()


def targets(plan: Plan) -> Iterator[Target]:
    """Yield what a plan attacks first."""
    rules = plan.scenario.rules
    for state, outcome in _states(plan):
        disks = dict.fromkeys(outcome.durable_before(state))
        pasts = [Past(disk, read(disk, rules)) for disk in disks if disk != state.disk]
        yield Target(state.disk, read(state.disk, rules), pasts)


def _states(plan: Plan) -> Iterator[tuple[State, Outcome]]:
    """Yield the states to attack; nothing is in a volatile cache when an attacker copies disks."""
    outcome = explore(replace(plan.scenario, damage=False, replay=False))
    assert not outcome.failures, outcome.failures[0]
    states: dict[tuple[Disk, frozenset[Disk]], State] = {}
    for state in outcome.steps:
        if not state.pending:
            before = frozenset(outcome.durable_before(state))
            states.setdefault((state.disk, before), state)
    chosen = list(states.values())
    for state in chosen[:: -(-len(chosen) // plan.disks)]:
        yield state, outcome


class _Siege:
    def __init__(self, plan: Plan, most_unexplained: int) -> None:
        self._plan = plan
        self._rules = plan.scenario.rules
        self._most = most_unexplained
        self._findings = Findings()
        self._read = lru_cache(_READINGS)(lambda disk: read(disk, self._rules))

    def run(self) -> Findings:
        for number, (state, outcome) in enumerate(_states(self._plan)):
            past = self._pasts(dict.fromkeys(outcome.durable_before(state)))
            target, history = self._target(state.disk, past), outcome.history(state)
            self._attack(target, history, number, self._plan.rounds)
            if len(self._findings.unexplained) >= self._most:
                break
        return self._findings

    def _target(self, disk: Disk, pasts: Iterable[Past]) -> Target:
        older = [past for past in pasts if past.disk != disk]
        return Target(disk, self._read(disk), older, self._findings.counts)

    def _pasts(self, disks: Iterable[Disk]) -> list[Past]:
        return [Past(disk, self._read(disk)) for disk in disks]

    # ------------------------------------------------------------- attacking

    def _attack(self, target: Target, history: tuple[str, ...], seed: int, rounds: int) -> None:
        plan, counts = self._plan, self._findings.counts
        counts["disks"] += 1
        accepted: dict[Disk, Directory] = {}
        if plan.all_images:
            for image in target.all_images(plan.all_images, seed):
                self._try(target, image, history, accepted, "any parts set back or lost")
        if plan.few_parts:
            for image, mendable in target.few_parts():
                kind = "a part set back, heads damaged"
                counts[f"{kind}, {mendable} of them mendable"] += 1
                self._try(target, image, history, accepted, kind)
        if plan.several_parts:
            for number in (2, 3):
                kind = f"{number} parts set back"
                for image in target.several_parts(number, plan.several_parts, seed):
                    self._try(target, image, history, accepted, kind)
        if rounds:
            self._go_on(target, history, accepted, seed, rounds)

    def _try(
        self,
        target: Target,
        image: Disk,
        history: tuple[str, ...],
        accepted: dict[Disk, Directory],
        kind: str,
    ) -> None:
        """Judge an attack; note the image if the owner continues with it."""
        if image == target.disk:
            return
        findings = self._findings
        findings.counts["attacks"] += 1
        findings.counts[kind] += 1
        verdict = target.judge(image, self._read)
        findings.counts[verdict.what] += 1
        left = verdict.left
        if left is None:
            return
        met = left.counted >= target.directory.counted or not self._plan.pinned
        if verdict.what != "reported" and met and _is_whole(image, left):
            accepted[image] = left
        if verdict.what != "undetected":
            return
        example = Example(
            history,
            difference(target.disk, image),
            f"sees {describe(left.view)} instead of {describe(target.directory.view)}",
        )
        exposure = explain(target, image, left)
        if exposure is None:
            findings.unexplained.append(example)
            return
        findings.counts[exposure.value] += 1
        _keep_shortest(findings.examples, exposure, example)
        for way in denied(target, left):
            findings.counts[f"{exposure.value}: {way}"] += 1
        if left.root is target.directory.root:
            findings.counts["not found by a pinned root"] += 1
            _keep_shortest(findings.unpinned, "root", example)
        if left.counted >= target.directory.counted:
            findings.counts["not found by a pinned generation"] += 1
            _keep_shortest(findings.unpinned, "generation", example)

    # -------------------------------------------------------------- going on

    def _go_on(
        self,
        target: Target,
        history: tuple[str, ...],
        accepted: dict[Disk, Directory],
        seed: int,
        rounds: int,
    ) -> None:
        """Let the owner open what an attack left, and change it; and attack again."""
        draw = random.Random(seed)
        operations = list(self._plan.scenario.menu.items())
        for image, left in accepted.items():
            what, operation = draw.choice(operations)
            disk, disks = image, [image]
            for epoch in recovery(image, left, self._rules):
                disk = written(disk, epoch)
                disks.append(disk)
            recovered = self._read(disk)
            change = operation(Store(disk, recovered, self._rules, number=50 + rounds))
            for epoch in change.epochs if change else ():
                disk = written(disk, epoch)
                disks.append(disk)
            pasts = [*self._pasts(dict.fromkeys(reversed(disks))), *target.pasts]
            pasts.append(Past(target.disk, target.directory))
            attacked = f"set back or lost: {difference(target.disk, image)}"
            words = (*history, attacked, "recover", what)
            self._attack(self._target(disk, pasts), words, draw.randrange(1 << 30), rounds - 1)
            if len(self._findings.unexplained) >= self._most:
                break


def _is_whole(image: Disk, left: Directory) -> bool:
    """Say whether no head is lost, so that a writer may continue (C61)."""
    return all(isinstance(image[item.position].head, Record | Free) for item in left.items)


def _keep_shortest(examples: dict[_Key, Example], key: _Key, example: Example) -> None:
    known = examples.get(key)
    if known is None or example.length < known.length:
        examples[key] = example
