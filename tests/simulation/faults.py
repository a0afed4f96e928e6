"""What goes wrong, at moments that chance picks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.simulation.disk import Weather

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.world import World


#: Faults that take what is not durable along.
_DEADLY: Final = (
    "kill the owner",
    "cut the power",
    "kill the storage",
    "cut the power of the storage",
    "take over",
)


class Faults:
    """Has the faults of a plan happen in a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.scheduler.random
        self._do: dict[str, Callable[[], None]] = {
            "kill the owner": self._kill_owner,
            "stop the owner": self._stop_owner,
            "kill a client": self._kill_client,
            "cut the power": lambda: world.cut_power(world.active),
            "bad disk": self._bad_disk,
            "kill the storage": self._kill_storage,
            "cut the power of the storage": lambda: world.cut_power("storage"),
            "cut the link": self._cut_link,
            "reset a connection": lambda: world.network.break_one(world.active, "storage"),
            "take over": world.take_over,
        }

    def start(self) -> None:
        for name in self._world.plan.faults:
            self._later(name)

    def _later(self, name: str) -> None:
        steps = self._random.expovariate(1 / self._world.plan.faults[name])
        self._world.scheduler.after_steps(steps, name, lambda: self._happen(name))

    def _happen(self, name: str) -> None:
        world = self._world
        if world.stopping:
            return
        world.counts[name] = world.counts.get(name, 0) + 1
        self._later(name)

        def do() -> None:
            if not world.stopping:
                world.scheduler.note(name)
                self._do[name]()

        def soon() -> None:
            world.scheduler.after_steps(self._random.randrange(12), name, do)

        # Often when something was written and not flushed: there is most to lose.
        if name in _DEADLY and self._random.random() < 0.6:
            world.disk.when_written = soon
        else:
            do()

    def _kill_owner(self) -> None:
        owner = self._world.owner()
        if owner is not None:
            owner.kill()

    def _stop_owner(self) -> None:
        self._world.stop_owner()

    def _kill_client(self) -> None:
        """Kill one that puts and reads; one that writes a window is alone with it."""
        processes = self._world.processes
        names = [name for name in processes if name.startswith("blobs")]
        if names:
            processes[self._random.choice(names)].kill()

    def _kill_storage(self) -> None:
        self._world.processes["storage"].kill()

    def _bad_disk(self) -> None:
        draw = self._random
        self._world.disk.weather = Weather(
            failing=draw.choice((0.0, 0.05, 0.5)),
            full=draw.random(),
            slow=draw.choice((0.0, 0.1)),
            seconds=draw.choice((0.001, 0.05, 1.0)),
            early=draw.choice((0.0, 0.5)),
        )
        self._world.scheduler.after(draw.choice((0.005, 0.05)), "good disk", self._good_disk)

    def _good_disk(self) -> None:
        self._world.disk.weather = Weather()

    def _cut_link(self) -> None:
        world = self._world
        host = world.active
        if world.network.is_cut(host, "storage"):
            return
        world.network.cut(host, "storage")
        seconds = self._random.choice((0.01, 0.5, 5.0, 40.0))
        world.scheduler.after(seconds, "heal", lambda: world.network.heal(host, "storage"))
