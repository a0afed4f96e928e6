"""Rounds: one host writes, something dies or is cut off, and nothing that was acknowledged is lost.

A round is one kind of failure under load. Where the writer outlives it, it goes on. Where not, the
other host takes the store over, and the writer, if it comes back, is refused.
"""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.hosts.host import RECONNECTING, SILENT

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from tests.hosts.network import Cut, Network
    from tests.hosts.storage import Storage

#: Seconds that anything may take that must happen at some time.
PATIENCE = 90.0


@dataclass(frozen=True, slots=True)
class Round:
    """What a round showed.

    Attributes:
        kind: Of the failure, and where the store lies.
        acknowledged: Number of the last put that the writer was told of.
        found: Number of the put that was there afterwards.
        pause: Seconds without a put, where the writer went on; None where it did not.
        take_over: Seconds until the other host had taken over and put; None if it did not.
        refusal: What the writer was refused with, if it came back.
    """

    kind: str
    acknowledged: int
    found: int
    pause: float | None = None
    take_over: float | None = None
    refusal: str | None = None

    @property
    def lost(self) -> int:
        """How many acknowledged puts are not there."""
        return max(0, self.acknowledged - self.found)


class Writer:
    """A host that puts one number after the other, and what it was told."""

    def __init__(self, network: Network, host: str, place: str) -> None:
        self.process = subprocess.Popen(
            [*network.within(host), sys.executable, "-m", "tests.hosts.host", "write", place],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.acknowledged = -1
        self.refusal: str | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line.startswith("refused"):
                    self.refusal = line.strip().removeprefix("refused ")
                else:
                    self.acknowledged = int(line)
                self._lines.put(line)
        self._lines.put("")  # the end

    def wait_for_puts(self, count: int) -> None:
        """Wait until so many more puts were acknowledged."""
        end = time.monotonic() + PATIENCE
        while not self._lines.empty():
            self._lines.get()
        for _ in range(count):
            line = self._lines.get(timeout=end - time.monotonic())
            assert line, "the writer ended"
            assert not line.startswith("refused"), line

    def ended(self) -> str | None:
        """Wait until it ends by itself; return what it was refused with."""
        self.process.wait(PATIENCE)
        self._reader.join()
        return self.refusal

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join()


@contextmanager
def writing(network: Network, host: str, place: str) -> Iterator[Writer]:
    """Write from a host until the end of the ``with`` block."""
    writer = Writer(network, host, place)
    try:
        writer.wait_for_puts(5)
        yield writer
    finally:
        writer.kill()


class Heir:
    """The other host, which is ready to take over."""

    def __init__(self, network: Network, host: str, place: str) -> None:
        self._process = subprocess.Popen(
            [*network.within(host), sys.executable, "-m", "tests.hosts.host", "take", place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._ask(None) == "ready"

    def take_over(self) -> tuple[float, int]:
        """Take over; return the seconds, and the number of the put that was there."""
        seconds, number = self._ask("now").split()
        return float(seconds), int(number)

    def still_has(self) -> int:
        """Return the number that is there now, and end."""
        number = int(self._ask("end"))
        self._process.wait(PATIENCE)
        return number

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, what: str | None) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if what is not None:
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline().strip()
        assert line, "the other host failed"
        return line


@dataclass(frozen=True, slots=True)
class Scene:
    """Where rounds take place."""

    network: Network
    storage: Storage
    chance: random.Random

    def make(self) -> None:
        """Make the store."""
        subprocess.run(
            [
                *self.network.within("two"),
                *(sys.executable, "-m", "tests.hosts.host", "make", self.storage.place),
            ],
            check=True,
            timeout=PATIENCE,
        )

    def found(self) -> int:
        """Return the number that a host finds which opens the store now."""
        with self.heir() as heir:
            return heir.take_over()[1]

    @contextmanager
    def heir(self) -> Iterator[Heir]:
        heir = Heir(self.network, "two", self.storage.place)
        try:
            yield heir
        finally:
            heir.kill()

    def pause(self) -> None:
        """Let some puts happen."""
        time.sleep(self.chance.uniform(0.05, 0.5))


def server_killed(scene: Scene) -> Round:
    """The server, or the OSD, is killed and started again; the writer goes on."""
    return _going_on(scene, "server killed", scene.storage.restart)


def _going_on(scene: Scene, kind: str, fail: Callable[[], None]) -> Round:
    with writing(scene.network, "one", scene.storage.place) as writer:
        scene.pause()
        began = time.monotonic()
        fail()
        writer.wait_for_puts(1)
        paused = time.monotonic() - began
        writer.wait_for_puts(5)
        scene.pause()
    return Round(kind, writer.acknowledged, scene.found(), pause=paused)


def short_cut(scene: Scene) -> Round:
    """The network is cut, and healed before connecting again is given up; the writer goes on."""
    how: Cut = scene.chance.choice(("unplugged", "mute"))

    def cut() -> None:
        scene.network.cut("one", how)
        time.sleep(scene.chance.uniform(0.2, SILENT + RECONNECTING - 1.0))
        scene.network.heal("one", how)

    return _going_on(scene, f"{how}, healed in time", cut)


def client_killed(scene: Scene) -> Round:
    """The writer is killed; the other host takes over."""
    with scene.heir() as heir, writing(scene.network, "one", scene.storage.place) as writer:
        scene.pause()
        writer.kill()
        seconds, number = heir.take_over()
    return Round("client killed", writer.acknowledged, number, take_over=seconds)


def long_cut(scene: Scene) -> Round:
    """The writer is cut off, the other host takes over, and the network comes back."""
    how: Cut = scene.chance.choice(("unplugged", "mute"))
    with scene.heir() as heir, writing(scene.network, "one", scene.storage.place) as writer:
        scene.pause()
        scene.network.cut("one", how)
        try:
            if scene.storage.place.startswith("nbd"):
                # Nothing fences here: the other host waits until the writer has given up.
                writer.ended()
            seconds, number = heir.take_over()
        finally:
            scene.network.heal("one", how)
        refusal = writer.ended()
        # What was on its way from the old writer has had time to arrive.
        time.sleep(1)
        assert heir.still_has() == number + 1
    return Round(
        f"{how}, taken over", writer.acknowledged, number, take_over=seconds, refusal=refusal
    )


def client_stopped(scene: Scene) -> Round:
    """The writer does not run for a while, the other host takes over, and the writer goes on."""
    with scene.heir() as heir, writing(scene.network, "one", scene.storage.place) as writer:
        scene.pause()
        writer.process.send_signal(signal.SIGSTOP)
        try:
            seconds, number = heir.take_over()
        finally:
            writer.process.send_signal(signal.SIGCONT)
        refusal = writer.ended()
        assert heir.still_has() == number + 1
    return Round("client stopped", writer.acknowledged, number, take_over=seconds, refusal=refusal)


#: What can happen at any place, and what only where a writer can be shut out.
EVERYWHERE = (server_killed, short_cut, client_killed, long_cut)
FENCED = (*EVERYWHERE, client_stopped)
