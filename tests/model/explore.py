"""Exploring: every history of a few operations and crashes, breadth first.

A **history** is a sequence of steps: an operation that ends, a power cut or a killed process
somewhere in one, recovery, which may be cut or killed as well, a header copy that goes bad. After
each step the store is read and compared with what it may hold. Breadth first means that no failure
has a shorter history than the first one found.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tests.model.damage import harmful_damages
from tests.model.directory import Refusal, describe
from tests.model.disk import (
    EMPTY,
    PLAIN,
    Disk,
    Medium,
    Write,
    crash_images,
    difference,
    written,
)
from tests.model.reader import read
from tests.model.recovery import recovery
from tests.model.replay import unnoticed_replays
from tests.model.rules import ALL, Rules
from tests.model.writing import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.model.directory import Directory, View
    from tests.model.writing import Epoch, Operation

#: Readings kept; most histories pass through the same few disks.
_READINGS = 1 << 15


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is explored.

    Attributes:
        start: A sound store.
        menu: Operations by name.
        operations: How many of them a history may have.
        crashes: How many power cuts and kills.
        bad_headers: How many header copies may go bad.
        kills: Whether the process may be killed, so that what it wrote stays in the cache.
        damage: Whether each disk is damaged in every single place.
        replay: Whether parts of each disk are set back to what they were before.
        medium: What a power cut does.
        rules: Those in force.
        limit: How many states are visited at most.
    """

    start: Disk
    menu: Mapping[str, Operation]
    operations: int = 3
    crashes: int = 2
    bad_headers: int = 0
    kills: bool = True
    damage: bool = False
    replay: bool = False
    medium: Medium = PLAIN
    rules: Rules = ALL
    limit: int = 10_000_000


class State(NamedTuple):
    """Where a history has got to.

    Attributes:
        running: Whether a writer has the store open and has recovered it; else none has.
        disk: What is durable.
        pending: What is in a volatile cache besides, in order.
        allowed: What may be seen.
        operations: How many are left.
        crashes: How many are left.
        bad_headers: How many are left.
        acknowledged: The highest generation that was acknowledged, or seen by a writer.
        closed: The highest generation of which a close was acknowledged.
    """

    running: bool
    disk: Disk
    pending: tuple[Write, ...]
    allowed: frozenset[View]
    operations: int
    crashes: int
    bad_headers: int
    acknowledged: int
    closed: int


class Step(NamedTuple):
    """How a state was reached.

    Attributes:
        before: From which state; None at the start.
        what: Operation or event.
        epoch: In which of its epochs it was cut or killed; None if it ended.
        issued: How many writes of that epoch a killed process had issued; 0 for a power cut.
        durable: What the medium held on the way: at the ends of the epochs that were flushed.
    """

    before: State | None
    what: str
    epoch: int | None
    issued: int
    durable: tuple[Disk, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A history that ends in what must not be."""

    kind: str
    history: tuple[str, ...]
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {' ; '.join(self.history) or 'at once'} => {self.detail}"


@dataclass(slots=True)
class Outcome:
    """What exploring found.

    Attributes:
        scenario: What was explored.
        counts: What was done: states, images, damages, replays and what became of them.
        failures: Those found until it stopped.
        steps: Every state reached, in order, and the step to it.
        complete: Whether all states were visited.
    """

    scenario: Scenario
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    steps: dict[State, Step] = field(default_factory=dict)
    complete: bool = False

    def history(self, state: State) -> tuple[str, ...]:
        """Return the steps to a state, in words."""
        words = []
        step = self.steps[state]
        while step.before is not None:
            words.append(_describe(step, state))
            state = step.before
            step = self.steps[state]
        return tuple(reversed(words))

    def durable_before(self, state: State) -> Iterator[Disk]:
        """Yield what the medium held on the way to a state, last first."""
        step = self.steps[state]
        while step.before is not None:
            yield from reversed(step.durable)
            yield step.before.disk
            step = self.steps[step.before]


def _describe(step: Step, state: State) -> str:
    if step.epoch is None:
        return step.what
    if step.issued:
        return f"{step.what}: kill@{step.epoch}/{step.issued}"
    assert step.before is not None
    base = step.durable[-1] if step.durable else step.before.disk
    return f"{step.what}: cut@{step.epoch}{{{difference(base, state.disk)}}}"


def explore(scenario: Scenario, *, failures: int = 10) -> Outcome:
    """Go through all histories of a scenario; stop at so many failures."""
    return _Explorer(scenario, failures).run()


class _Explorer:
    def __init__(self, scenario: Scenario, failures: int) -> None:
        self._scenario = scenario
        self._rules = scenario.rules
        self._most_failures = failures
        self._outcome = Outcome(scenario)
        self._queue: deque[State] = deque()
        self._damaged: set[Disk] = set()
        # The rules, being the same all the time, stay out of the cache's keys.
        self._read = lru_cache(_READINGS)(lambda disk: read(disk, scenario.rules))

    def run(self) -> Outcome:
        scenario, outcome = self._scenario, self._outcome
        directory = read(scenario.start, ALL)
        start = State(
            running=True,
            disk=scenario.start,
            pending=(),
            allowed=frozenset([directory.view]),
            operations=scenario.operations,
            crashes=scenario.crashes,
            bad_headers=scenario.bad_headers,
            acknowledged=directory.generation,
            closed=directory.header.durable,
        )
        outcome.steps[start] = Step(None, "", None, 0, ())
        self._queue.append(start)
        while self._queue and outcome.counts["states"] < scenario.limit:
            self._visit(self._queue.popleft())
            if len(outcome.failures) >= self._most_failures:
                return outcome
        outcome.complete = not self._queue
        for hole in unnoticed_replays(outcome) if scenario.replay else ():
            self._fail("REPLAY", hole.state, hole.detail, hole.what)
            if len(outcome.failures) >= self._most_failures:
                break
        return outcome

    # -------------------------------------------------------------- checking

    def _visit(self, state: State) -> None:
        """Check a state, and continue from it."""
        self._outcome.counts["states"] += 1
        disk = written(state.disk, state.pending) if state.pending else state.disk
        try:
            directory = self._read(disk)
        except Refusal as refusal:
            self._fail("REFUSED", state, str(refusal))
            return
        problem = self._find_problem(state, directory)
        if problem is not None:
            self._fail("WRONG", state, problem)
            return
        if not state.pending:
            self._damage(state, directory)
            self._spoil_headers(state)
        if state.running:
            self._operate(state, Store(disk, directory, self._rules, self._number(state)))
        else:
            self._recover(state, disk, directory)

    def _number(self, state: State) -> int:
        return self._scenario.operations - state.operations + 1

    def _find_problem(self, state: State, directory: Directory) -> str | None:
        """Return what is wrong with what was read in a state."""
        if directory.damaged:
            return f"no item at block {directory.damaged[0]}"
        if directory.view not in state.allowed:
            allowed = " or ".join(sorted(map(describe, state.allowed)))
            return f"sees {describe(directory.view)} instead of {allowed}"
        if directory.generation < state.acknowledged:
            return f"generation {state.acknowledged} went back to {directory.generation}"
        if directory.header.durable < state.closed:
            return f"D went back from {state.closed} to {directory.header.durable}"
        unrecovered = directory.orphans or directory.left_over
        if state.running and unrecovered and self._rules.recovery_finishes:
            return "something is left to be recovered"
        return None

    def _fail(self, kind: str, state: State, detail: str, *last: str) -> None:
        history = (*self._outcome.history(state), *last)
        self._outcome.failures.append(Failure(kind, history, detail))

    def _damage(self, state: State, directory: Directory) -> None:
        """Damage the disk of a state; once is enough for each disk."""
        if not self._scenario.damage or state.disk in self._damaged:
            return
        self._damaged.add(state.disk)
        for harm in harmful_damages(state.disk, directory, self._rules, self._outcome.counts):
            self._fail("DAMAGE", state, harm.detail, harm.what)

    # -------------------------------------------------------------- stepping

    def _push(self, state: State, step: Step) -> None:
        if state not in self._outcome.steps:
            self._outcome.steps[state] = step
            self._queue.append(state)

    def _spoil_headers(self, state: State) -> None:
        """Damage a header copy while the other is sound; the store is opened again."""
        if not state.bad_headers or EMPTY in state.disk[:2]:
            return
        for copy in (0, 1):
            spoilt = state._replace(
                running=False,
                disk=written(state.disk, [(copy, EMPTY)]),
                bad_headers=state.bad_headers - 1,
            )
            self._push(spoilt, Step(state, f"header {copy} goes bad", None, 0, ()))

    def _recover(self, state: State, disk: Disk, directory: Directory) -> None:
        self._outcome.counts["recoveries"] += 1
        seen = frozenset([directory.view])
        epochs = recovery(disk, directory, self._rules)
        # Until its first flush has returned, what a reader saw may vanish; then no more.
        self._play(state, state, "recover", epochs, [state.allowed, seen], seen)

    def _operate(self, state: State, store: Store) -> None:
        if not state.operations:
            return
        directory = store.directory
        begun = state._replace(
            operations=state.operations - 1,
            acknowledged=directory.generation,
            closed=directory.header.durable,
        )
        for name, operation in self._scenario.menu.items():
            change = operation(store)
            if change is not None:
                within = [stage.seen for stage in change.stages]
                after = frozenset([change.view])
                self._play(state, begun, name, change.epochs, within, after)

    def _play(
        self,
        origin: State,
        begun: State,
        what: str,
        epochs: Sequence[Epoch],
        within: Sequence[frozenset[View]],
        after: frozenset[View],
    ) -> None:
        """Do what an operation or recovery writes, and be cut and killed everywhere in it.

        Args:
            origin: The state before it.
            begun: The same, with its costs taken off.
            what: Its name.
            epochs: What it writes.
            within: What may be seen after a crash in each epoch; the last goes for all that follow.
            after: What may be seen when it has ended.
        """
        disk, pending = begun.disk, begun.pending
        durable: list[Disk] = []
        for number, epoch in enumerate(epochs):
            writes = [*pending, *epoch]
            if begun.crashes:
                crashed = begun._replace(
                    running=False,
                    pending=(),
                    allowed=within[min(number, len(within) - 1)],
                    crashes=begun.crashes - 1,
                )
                step = Step(origin, what, number, 0, tuple(durable))
                for image in crash_images(disk, writes, self._scenario.medium):
                    self._outcome.counts["images"] += 1
                    self._push(crashed._replace(disk=image), step)
                if self._scenario.kills:
                    for issued in range(1, len(epoch) + 1):
                        cached = tuple(writes[: len(pending) + issued])
                        killed = crashed._replace(disk=disk, pending=cached)
                        self._push(killed, step._replace(issued=issued))
            if number == len(epochs) - 1 and not self._rules.flush_is_never_repeated_alone:
                # The flush fails: what it was to store is dropped, and no later one stores it.
                dropped = begun._replace(running=True, pending=(), allowed=after)
                step = Step(origin, f"{what}, its last flush failing", None, 0, tuple(durable))
                for image in crash_images(disk, writes, self._scenario.medium):
                    self._push(dropped._replace(disk=image), step)
            disk, pending = written(disk, writes), ()
            durable.append(disk)
        ended = begun._replace(running=True, disk=disk, pending=pending, allowed=after)
        self._push(ended, Step(origin, what, None, 0, tuple(durable)))
