"""What clients do, each a process of its own, and what they tell the checker."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from blobstore.errors import (
    GenerationMismatchError,
    PoisonedStoreError,
    UnwrittenBlobError,
)
from blobstore.image.remote.nbd_connection import NbdAddress
from blobstore.image.remote.nbd_disk import NbdDisk
from blobstore.owner import problems
from blobstore.owner.client import StoreClient
from blobstore.owner.exchange import Exchange
from formats.errors import DeviceError, StorageError
from tests.simulation.programs import open_device
from tests.simulation.scheduler import SimulationError
from tests.simulation.structure import PREFIX, Found
from tests.simulation.watches import WatchHistory
from tests.simulation.windows import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.owner.exchange import Answer
    from tests.simulation.scheduler import Process
    from tests.simulation.world import World


class Client:
    """A client, from its start to its death. It connects again whenever it has to."""

    def __init__(self, world: World, process: Process) -> None:
        from tests.simulation.world import BLOBS, FRONT, OWNER

        self.world, self.process = world, process
        self.scheduler, self.checker = world.scheduler, world.checker
        self.random = world.scheduler.random
        self._names = list(BLOBS)
        self._owner, self._front = Path(OWNER), Path(FRONT)

    def repeat(self, session: Callable[[], None]) -> None:
        """Have one session with an owner after the other."""
        pause = 0.001
        while not self.world.stopping:
            began = self.checker.acknowledged
            try:
                session()
            except PoisonedStoreError:
                self.world.give_up(self.world.owner())
            except DeviceError:
                pass
            except StorageError as error:
                # What cannot be read counts as damage.
                if self.world.trouble == self.world.trouble_before:
                    raise SimulationError(f"{self.process.name} is told: {error}") from error
                self.world.give_up(self.world.owner())
            # The longer the fewer steps, where there is nothing to be had.
            pause = 0.001 if self.checker.acknowledged > began else min(pause * 2, 5.0)
            self.scheduler.sleep(pause * 2 * self.random.random())

    @property
    def is_there(self) -> bool:
        """Whether the owner is to be at this host."""
        return not self.world.stopping and self.world.active == self.process.host

    # ---------------------------------------------------------------- blobs

    def blobs(self) -> None:
        """Put, read, and put under a condition, by plain requests."""
        timeout = self.random.choice((None, None, 0.5))
        exchange = Exchange(self._owner, timeout=timeout)
        while not self.world.stopping:
            name = self.random.choice(self._names)
            chosen = self.random.random()
            if chosen < 0.45:
                self._put(exchange, name, None)
            elif chosen < 0.75:
                self._get(exchange, name)
            else:
                generation = self._get(exchange, name)
                if generation is not None:
                    self._put(exchange, name, generation)

    def _get(self, exchange: Exchange, name: str) -> int | None:
        floor, before = self.checker.floor(name), self.world.counts.get("take over", 0)
        answer = exchange.ask("GET", f"/v1/sections/{name}")
        if answer.status == 200:
            generation = _generation(answer)
            self.checker.was_read(name, floor, generation, answer.body)
            return generation
        error = problems.error_of(answer.status, answer.body)
        if isinstance(error, UnwrittenBlobError):
            # An owner that was shut out says this from memory, since it reads nothing for it.
            if before == self.world.counts.get("take over", 0) and self.is_there:
                self.checker.was_unwritten(name, floor)
            return None
        raise error

    def _put(self, exchange: Exchange, name: str, wanted: int | None) -> None:
        change = self.checker.begin((name,), wanted)
        headers = {} if wanted is None else {"if-match": f'"{wanted}"'}
        try:
            answer = exchange.ask(
                "PUT", f"/v1/sections/{name}", self.checker.blob(change, name), headers
            )
        except BaseException:
            self.checker.is_unknown(change)
            raise
        if answer.status == 204:
            self.checker.succeeded(change, _generation(answer))
        else:
            error = problems.error_of(answer.status, answer.body)
            if isinstance(error, GenerationMismatchError):
                self.checker.was_refused(change)
                return
            self.checker.is_unknown(change)
            raise error

    # --------------------------------------------------------- transactions

    def transactions(self) -> None:
        """Put several blobs together."""
        with StoreClient(self._owner) as client:
            while not self.world.stopping:
                names = self.random.sample(self._names, self.random.choice((2, 3)))
                change = self.checker.begin(names)
                try:
                    with client.transaction() as changes:
                        for name in names:
                            changes.put(name, self.checker.blob(change, name))
                except BaseException:
                    self.checker.is_unknown(change)
                    raise
                assert changes.generation is not None
                self.checker.succeeded(change, changes.generation)

    # -------------------------------------------------------------- watches

    def watch(self) -> None:
        """Be told of all commits."""
        history = WatchHistory(self.checker)
        with StoreClient(self._owner) as client, client.changes(timeout=1) as watch:
            for found in watch:
                history.item(found)
                self.world.counts["told"] = self.world.counts.get("told", 0) + 1
                if self.world.stopping:
                    return

    # -------------------------------------------------------------- windows

    def http_window(self) -> None:
        """Write a window over HTTP, and look what it holds."""
        history = self.world.windows["http"]
        while not self.world.stopping:
            if not self.is_there:
                self.scheduler.sleep(0.05)
                continue
            with StoreClient(self._owner) as client:
                recoveries = history.recoveries

                def is_same(known: int = recoveries) -> bool:
                    """Say whether the owner is still the one that the window was opened at."""
                    return self.is_there and known == history.recoveries

                window = client.window("http")
                content = window.read(0, window.size)
                if is_same():
                    history.was_read(content)
                while is_same():
                    if self.random.random() < 0.6:
                        block = self.random.randrange(history.blocks)
                        window.write(block * BLOCK, history.write(block))
                        if is_same():
                            history.written()
                    elif self.random.random() < 0.5:
                        window.flush()
                        if is_same():
                            history.flushed()
                    else:
                        content = window.read(0, window.size)
                        if is_same():
                            history.was_read(content)

    def nbd_window(self) -> None:
        """Write a window over NBD, with a client that repeats what was not flushed (N66)."""
        history = self.world.windows["nbd"]
        address = NbdAddress(socket=self._front, export="nbd")
        with NbdDisk(address, read_only=False) as disk:
            history.was_read_again(disk.read(0, disk.size))
            while not self.world.stopping:
                if self.random.random() < 0.6:
                    block = self.random.randrange(history.blocks)
                    disk.write(block * BLOCK, history.write(block))
                    history.written()
                elif self.random.random() < 0.6:
                    disk.flush()
                    history.flushed()
                else:
                    history.was_read(disk.read(0, disk.size))

    # ------------------------------------------------------------ structure

    def structure(self) -> None:
        """Make sections, and change and delete them."""
        history = self.world.structure
        with StoreClient(self._owner) as client:
            history.was_found(self._made(client))
            while not self.world.stopping:
                history.change(client)
                if self.random.random() < 0.3:
                    history.was_found(self._made(client))

    def _made(self, client: StoreClient) -> dict[str, Found]:
        found = {}
        for section in client.sections():
            if section.name.startswith(PREFIX):
                try:
                    blob = client.get(section.name)
                except UnwrittenBlobError:
                    blob = None
                found[section.name] = Found(section.max_size, blob)
        return found

    # ----------------------------------------------------------------- keys

    def keys(self) -> None:
        """Change the passphrase now and then, while an owner has the image."""
        self.scheduler.sleep(self.random.random() * 0.3)
        serving = self.world.serving
        if serving is not None and serving.alive:
            with closing(open_device(self.world, self.process)) as device:
                self.world.keys.change(device)


def _generation(answer: Answer) -> int:
    return int(answer.headers["etag"].strip('"'))
