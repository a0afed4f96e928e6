"""One simulation from its seed, and many of them."""

from __future__ import annotations

import gc
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.simulation.faults import Faults
from tests.simulation.plans import plan_of
from tests.simulation.scheduler import TRACED, SimulationError
from tests.simulation.substitution import substituted
from tests.simulation.workload import Client
from tests.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.simulation.world import Plan

#: Steps of one simulation: enough for some tens of faults, and few enough to replay at once.
LENGTH: Final = 20_000


@dataclass
class Report:
    """What simulations did, together.

    Attributes:
        steps: Decisions of the scheduler.
        runs: Simulations.
        counts: Faults by kind, and what clients did.
    """

    steps: int = 0
    runs: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, world: World) -> None:
        self.steps += world.scheduler.steps
        self.runs += 1
        checker = world.checker
        found = {
            **world.counts,
            "acknowledged": checker.acknowledged,
            "unknown": checker.unknown,
            "read": checker.reads,
            "recovered": checker.recoveries,
            "flushed windows": sum(one.flushes for one in world.windows.values()),
            "changed passphrases": world.keys.changes,
            "changed structure": world.structure.changes,
            "lost sectors": world.disk.lost,
            "disk requests": world.disk.requests,
        }
        for name, count in found.items():
            self.counts[name] = self.counts.get(name, 0) + count


def run_many(
    seed: int,
    steps: int,
    progress: Callable[[Report], None] = lambda _: None,
    *,
    traced: int = TRACED,
) -> Report:
    """Run simulations with this seed and the next ones, until they made so many steps.

    Raises:
        SimulationError: As `simulate`.
    """
    report = Report()
    while report.steps < steps:
        length = min(LENGTH, steps - report.steps)
        report.add(simulate(seed + report.runs, steps=length, traced=traced))
        progress(report)
    return report


def simulate(
    seed: int, *, steps: int = LENGTH, plan: Plan | None = None, traced: int = TRACED
) -> World:
    """Run one simulation and return its world.

    Raises:
        SimulationError: A guarantee was broken. The message says how to replay it.
    """
    world = World(seed, plan or plan_of(seed), traced=traced)
    with substituted(world.scheduler, world.network, world.plan.interleave), quiet():
        try:
            world.start_all()
            for number in range(world.plan.clients):
                _start_client(world, f"blobs{number}-")
            for kind in ("transactions", "watch", "http_window", "nbd_window"):
                _start_client(world, kind)
            if world.plan.structure:
                _start_client(world, "structure")
            if world.plan.encrypted:
                _start_client(world, "keys")
            Faults(world).start()
            world.scheduler.run(steps)
        except SimulationError as error:
            raise SimulationError(_told(world, seed, steps, error)) from error
        finally:
            world.end()
    return world


def _told(world: World, seed: int, steps: int, error: SimulationError) -> str:
    scheduler = world.scheduler
    events = [f"{step:8} {now:12.6f}  {text}" for step, now, text in scheduler.trace]
    return "\n".join(
        (
            f"seed {seed} fails at step {scheduler.steps}: {error}",
            "the last events, with their steps and seconds:",
            *events,
            str(world.plan),
            f"replay it: python -m tests.simulation --seed {seed} --steps {steps}",
        )
    )


def _start_client(world: World, name: str) -> None:
    kind = name.rstrip("0123456789-")

    def work(process: object) -> None:
        client = Client(world, process)  # type: ignore[arg-type]
        client.repeat(getattr(client, kind))

    hosts = ("a", "b") if world.plan.place == "shared" and kind != "nbd_window" else ("a",)
    for host in hosts:
        world.start(name if kind == "keys" else f"{name}{host}", host, work)


@contextmanager
def quiet() -> Iterator[None]:
    """Neither log what is expected to fail, nor collect garbage at moments of its own."""
    gc.collect()
    gc.freeze()  # what is left belongs to programs and tests: the next collection skips it
    gc.disable()
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()
