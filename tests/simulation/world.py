"""The hosts of one simulation, what runs on them, and who restarts it.

- ``a`` and ``b`` can have the image: an owner with its HTTP server and an NBD front, and its
  clients. One of them is active at a time; with a shared disk the other one takes over by fencing.
- ``storage`` serves the disk over NBD, where the disk is not at the hosts themselves.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final

import luks
from blobstore.container.initialise import SectionSpec, initialise
from formats.container.model import Kind
from formats.devices.device import MemoryDevice
from tests.simulation.checker import Checker
from tests.simulation.disk import SimulatedDisk
from tests.simulation.keys import CHEAP, FIRST, KeyHistory
from tests.simulation.network import Network
from tests.simulation.programs import owner_program, storage_program
from tests.simulation.scheduler import TRACED, Process, Scheduler
from tests.simulation.structure import StructureHistory
from tests.simulation.windows import BLOCK, WindowHistory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from formats.devices.device import BlockDevice

#: Sections with blobs, and the largest blob of each.
BLOBS: Final[Mapping[str, int]] = {"a": 400, "b": 900, "c": 2500}
#: Windows: one is written over HTTP, the other one over NBD.
WINDOWS: Final[Mapping[str, int]] = {"http": 6 * BLOCK, "nbd": 6 * BLOCK}
OWNER: Final = "/run/owner"
FRONT: Final = "/run/nbd"
#: Bytes of a LUKS header with room for two keyslots, and one that is being made.
_LUKS: Final = 416 << 10
STORAGE: Final = ("storage", 10809)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a simulation consists of; `tests.simulation.plans` draws it from the seed.

    Attributes:
        place: Where the image lies: on a disk of its host (``local``), of another host that
            serves it over NBD (``nbd``), or on one that two hosts share (``shared``).
        encrypted: Whether the container lies in a LUKS volume.
        structure: Whether a client makes and deletes sections.
        clients: How many put and read blobs, at the same time.
        interleave: How likely a thread that takes a lock is held up.
        stall: How likely a thread that pauses is held up for long.
        stall_seconds: For how long, on average.
        stalled: What the names of the processes begin with that this happens to.
        faults: Mean steps between two faults, by kind.
    """

    place: str
    encrypted: bool = False
    structure: bool = False
    clients: int = 3
    interleave: float = 0.2
    stall: float = 0.0
    stall_seconds: float = 0.01
    stalled: str = ""
    faults: Mapping[str, float] = field(default_factory=dict)


class World:
    """One simulation.

    Attributes:
        active: The host that has the image, or is to have it.
        stopping: Whether clients are to end.
        trouble_before: What `trouble` was when the last owner began to open the image.
        serving: The owner that began to serve last.
        stop_owner: Has the owner that was started last end in order.
        counts: How often each kind of fault happened.
    """

    def __init__(self, seed: int, plan: Plan, *, traced: int = TRACED) -> None:
        self.plan = plan
        self.scheduler = Scheduler(seed, traced)
        self.scheduler.stall = plan.stall
        self.scheduler.stall_seconds = plan.stall_seconds
        self.scheduler.stalled = plan.stalled
        self.network = Network(self.scheduler)
        self.checker = Checker(self.scheduler, BLOBS, moves=plan.structure)
        self.windows = {
            name: WindowHistory(self.scheduler, name, size // BLOCK, replays=name == "nbd")
            for name, size in WINDOWS.items()
        }
        content = _image(encrypted=plan.encrypted)
        self.disk = SimulatedDisk(self.scheduler, "disk", content)
        self.processes: dict[str, Process] = {}
        self.down: dict[str, None] = {}
        self.active = "a"
        self.stopping = False
        self.counts: dict[str, int] = {}
        self.trouble_before = 0
        self.keys = KeyHistory(self.scheduler)
        self.structure = StructureHistory(self.scheduler)
        self.serving: Process | None = None
        self.stop_owner: Callable[[], None] = lambda: None
        self._started = 0

    def start(self, name: str, host: str, work: Callable[[Process], object]) -> Process:
        """Start a program, which is started again after its end for as long as it is wanted."""
        if name.startswith("owner-") and "keys" in self.processes:
            # The lock of the header keeps them apart, where there is one.
            self.processes["keys"].kill()
        self._started += 1
        process = Process(self.scheduler, f"{name}{self._started}", host)
        self.processes[name] = process

        def run() -> None:
            work(process)
            self.scheduler.after(0.0, "exit", process.kill)

        process.at_death.append(lambda: self._ended(name, process, work))
        self.scheduler.spawn(process, "main", run)
        return process

    def start_all(self) -> None:
        """Start what is there from the beginning, except clients."""
        if self.plan.place == "nbd":
            self.start("storage", "storage", lambda process: storage_program(self, process))
        self.start_owner("a")

    def start_owner(self, host: str) -> None:
        self.start(f"owner-{host}", host, lambda process: owner_program(self, process))

    @property
    def trouble(self) -> int:
        """How often it happened that a disk could not be read: to the product that is damage."""
        far = ("kill the storage", "cut the power of the storage", "cut the link")
        return self.disk.failed + sum(self.counts.get(kind, 0) for kind in far)

    def owner(self) -> Process | None:
        """Return the process that has the image, or is to have it."""
        return self.processes.get(f"owner-{self.active}")

    def cut_power(self, host: str) -> None:
        """Have a host lose its power, with all that runs on it, and get it back after a while."""
        self.down[host] = None
        outage = self.scheduler.random.choice((0.01, 0.2, 3.0, 40.0))
        self.network.power_lost(host, outage)
        for process in list(self.processes.values()):
            if process.host == host:
                process.kill()
        if (self.plan.place, host) in {("local", "a"), ("nbd", "storage")}:
            self.disk.cut_power()
        self.scheduler.after(outage, f"power {host}", lambda: self.down.pop(host, None))

    def take_over(self) -> None:
        """Have the other host fence the active one, and open the image (P6)."""
        before, after = self.active, "b" if self.active == "a" else "a"
        old = self.processes.get(f"owner-{after}")
        if old is not None and old.alive:
            old.kill()  # what was fenced long ago
        self.active = after
        self.disk.fence(before, by=after)
        self.start_owner(after)

    def give_up(self, process: Process | None) -> None:
        """Restart an owner that can no longer write, as whoever runs it would."""
        if process is not None and process.alive:
            self.scheduler.after(self.scheduler.random.random() * 0.05, "give up", process.kill)

    def end(self) -> None:
        """Kill all that runs; nothing is checked any more."""
        self.stopping = True
        for process in list(self.processes.values()):
            process.kill()

    def _ended(self, name: str, process: Process, work: Callable[[Process], object]) -> None:
        """Start a program again, once its host is up, if it is still wanted."""

        def again() -> None:
            if self.stopping or self.processes[name] is not process:
                return
            if process.host in self.down:
                self.scheduler.after(0.05, f"wait {name}", again)
            elif not name.startswith("owner-") or process.host == self.active:
                self.start(name, process.host, work)

        delay = self.scheduler.random.choice((0.001, 0.02, 0.3))
        self.scheduler.after(delay, f"restart {name}", again)


@cache
def _image(*, encrypted: bool) -> bytes:
    """Return the image that a simulation begins with."""
    specs = [SectionSpec(name, size) for name, size in BLOBS.items()]
    specs += [SectionSpec(name, size, Kind.WINDOW) for name, size in WINDOWS.items()]
    disk = MemoryDevice((_LUKS if encrypted else 0) + (64 << 10))
    source = random.Random(0)
    payload: BlockDevice = disk
    if encrypted:
        payload = luks.format(
            disk,
            FIRST,
            key_size=32,
            kdf=CHEAP,
            sector_size=512,
            metadata_size=16 << 10,
            keyslots_size=_LUKS - (32 << 10),
            alignment=512,
            random=source.randbytes,
        )
    initialise(payload, specs, encrypted=encrypted, block_size=512, random=source.randbytes)
    return bytes(disk.content)
