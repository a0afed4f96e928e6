"""Repairing damaged heads and header copies: C70, C76, C77.

`blobstore.container.repair.deciding` says what is to be written, this writes it, so that a
crash at any point leaves what can be repaired again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from blobstore.container.extents import merge, wipe_heads
from blobstore.container.headers import header_span, make_equal, write_state
from blobstore.container.open_container import open_container
from blobstore.container.recovery import recover, write_heads
from blobstore.container.repair.deciding import Consent, plan_repair
from blobstore.container.repair.overlay import Overlay
from blobstore.container.repair.plan import Finding, Stage, mended_finding
from blobstore.container.verification import Problem
from blobstore.errors import CorruptStoreError
from formats.container.model import MAX_NAME_SIZE, validate_label
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from blobstore.container.open_container import OpenContainer
    from blobstore.container.repair.plan import Plan
    from blobstore.container.verification import Report

_log = LateLogger(__name__)


@dataclass(frozen=True, slots=True)
class Repaired:
    """What `repair` did.

    Attributes:
        container: The container as it is now.
        repairs: What was repaired, in order.
        refused: What was not, and why.
    """

    container: OpenContainer
    repairs: tuple[Finding, ...]
    refused: tuple[Finding, ...]


def repair(
    container: OpenContainer,
    *,
    accept_previous: Collection[str] = (),
    accept_lost: bool = False,
    names: Collection[str] = (),
) -> Repaired:
    """Repair header copies and heads, as far as something proves what they said.

    It may be interrupted anywhere and done again. Nothing is written to a
    container that is sound.

    Args:
        container: Not to be used any more if anything was repaired.
        accept_previous: Sections that may lose a change that nothing proves.
        accept_lost: Give up sections of which no name is left.
        names: What sections may have been renamed to, by lost heads.

    Raises:
        ValueError: One of ``names`` breaks C9.
        DeviceError, PoisonedStoreError: It was interrupted; nothing is lost.
    """
    for name in names:
        validate_label(name, "name", lowest=1, highest=MAX_NAME_SIZE)
    consent = Consent(frozenset(accept_previous), accept_lost, tuple(names))
    return _Repairer(container).run(consent)


def report(done: Repaired, verified: Report) -> Report:
    """Return a report of `verify` with what was repaired, and with what was not and why."""

    def problems(findings: Iterable[Finding]) -> tuple[Problem, ...]:
        return tuple(Problem(f.message, f.name, None, f.offset) for f in findings)

    return replace(
        verified,
        problems=(*problems(done.refused), *verified.problems),
        repairs=problems(done.repairs),
    )


class _Repairer:
    def __init__(self, container: OpenContainer) -> None:
        self._container = container
        self._device = container.device
        self._authenticator = container.authenticator
        self._block_size = container.block_size
        self._repairs: list[Finding] = []
        self._refused: list[Finding] = []

    def run(self, consent: Consent) -> Repaired:
        # What is seen, and built on, may still lie in a volatile cache.
        self._container.writer.write()
        self._tell_healed()
        self._repair_headers()
        if not (self._container.directory.damaged or self._container.mended):
            return self._result(self._container)
        plan = plan_repair(self._container, consent)
        self._refused += plan.refused
        if plan.is_empty or not self._is_consistent(plan):
            return self._result(self._container)
        for stage in Stage:
            if stage is Stage.EMPTIED and plan.durable:
                write_state(self._container, *plan.durable)
            write_heads(self._container, plan.heads[stage])
        self._repairs += plan.repairs
        for finding in plan.repairs:
            _log.warning("%s", finding.message)
        return self._result(self._reopen(plan))

    def _result(self, container: OpenContainer) -> Repaired:
        return Repaired(container, tuple(self._repairs), tuple(self._refused))

    def _tell_healed(self) -> None:
        """Tell of the heads that opening the store for this wrote back."""
        names = {
            copy.offset: section.name
            for section in self._container.directory.sections.values()
            for copy in section.copies
            if copy
        }
        self._repairs += [mended_finding(o, names.get(o)) for o in self._container.healed]

    def _repair_headers(self) -> None:
        """Rewrite bad header copies from the good one (C76)."""
        make_equal(self._container)
        for copy in self._container.rewritten:
            message = f"header copy {copy} was rewritten from the other"
            self._repairs.append(Finding(message, None, copy * self._block_size))

    def _is_consistent(self, plan: Plan) -> bool:
        """Say whether a reader takes the store as it would be; else nothing is written (C70)."""
        trial = Overlay(self._device)
        for stage in Stage:
            trial.heads.update(plan.heads[stage])
        if plan.durable:
            generation, root = plan.durable
            header = replace(
                self._container.header,
                sequence=self._container.header.sequence + 1,
                durable_generation=generation,
                root=root,
                total=self._container.total,
            )
            for copy in (0, 1):
                span = header_span(self._authenticator, replace(header, copy=copy))
                trial.heads[span.offset] = bytes(span.parts[0])
        try:
            open_container(trial)
        except CorruptStoreError as error:
            message = f"without the damage the store contradicts itself: {error}"
            self._refused.append(Finding(message, None, 0))
            return False
        return True

    def _reopen(self, plan: Plan) -> OpenContainer:
        """Open what was repaired, and recover it; join the space that became free."""
        container = open_container(self._device, allow_damaged=self._container.allow_damaged)
        recover(container)
        if container.directory.damaged:
            return container
        inside: set[int] = set()
        for offset, length in plan.freed.items():
            free = container.directory.free
            if offset in free and free[offset].length == length:
                inside |= merge(container, offset, length)
        wipe_heads(container, inside)
        return container
