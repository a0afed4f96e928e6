"""What runs on the hosts: the product, put together as its commands do it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import luks
from blobstore.errors import BlobNotFoundError, CorruptStoreError, UnwrittenBlobError
from blobstore.image.remote.nbd_connection import NbdAddress
from blobstore.image.remote.nbd_disk import NbdDisk
from blobstore.nbd.exports import Described, NbdSections, Opened
from blobstore.nbd.server import NbdServer
from blobstore.owner.owner import Owner
from blobstore.owner.server import OwnerServer
from blobstore.store.store import Store
from formats.errors import DeviceError, StorageError
from formats.nbd.model import Export
from tests.simulation.scheduler import SimulationError
from tests.simulation.structure import PREFIX, Found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.nbd.exports import Source
    from formats.devices.device import BlockDevice
    from tests.simulation.network import Address
    from tests.simulation.scheduler import Process
    from tests.simulation.world import World

#: Of the disk that the storage host exports.
EXPORT = "disk"


class BareDisk:
    """A disk as an export: what `blobstore.nbd.exports.NbdDevice` is for other devices.

    That one refuses to export a store for writing (N26), because its owner is elsewhere here.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._export = Export(EXPORT, device.size, read_only=False, block_size=device.block_size)

    def names(self) -> list[str]:
        return [EXPORT]

    def describe(self, name: str) -> Described:
        if name != EXPORT:
            raise BlobNotFoundError(f"there is no export {name!r}")
        return Described(self._export)

    def open(self, name: str) -> Opened:
        return Opened(self.describe(name).export, self._device, fills=False, close=lambda: None)

    def open_released(self, name: str) -> Opened:
        return self.open(name)


def storage_program(world: World, process: Process) -> None:
    """Serve the disk over NBD until the process dies."""
    from tests.simulation.world import STORAGE

    disk = world.disk.attach(process)
    with serving(world, process, STORAGE, BareDisk(disk)):
        world.scheduler.wait()


def owner_program(world: World, process: Process) -> None:
    """Open the image, check what is found, and serve it until the process dies or gives up."""
    from tests.simulation.world import FRONT, OWNER

    scheduler, checker = world.scheduler, world.checker
    trouble = world.trouble_before = world.trouble
    try:
        device = disk = open_device(world, process)
        if world.plan.encrypted:
            device = world.keys.unlocked(lambda key: luks.open(disk, key, read_only=False))
        store = Store.on_device(
            device,
            encrypted=world.plan.encrypted,
            at_least_generation=checker.generation,
        )
        report = store.verify()
        if not report.ok:
            raise CorruptStoreError(f"verify finds {report.problems}")
        _tell(world, process, store)
    except StorageError as error:
        # What cannot be read counts as damage (C71): whoever runs it tries again.
        if not isinstance(error, DeviceError) and world.trouble == trouble:
            raise SimulationError(f"{process.name} finds damage: {error}") from error
        scheduler.note(f"{process.name} cannot open the image: {error}")
        return
    owner = Owner(store, Path("/image"))
    listener = world.network.listen(process, OWNER)
    server = OwnerServer(owner, listener)  # type: ignore[arg-type]  # a simulated socket
    world.stop_owner = lambda: server.stop() if process.alive else None
    try:
        with serving(world, process, FRONT, NbdSections(store, ("nbd",))):
            scheduler.note(f"{process.name} serves")
            world.serving = process
            server.run()
        server.close()
        store.close()
    except StorageError as error:
        scheduler.note(f"{process.name} does not end well: {error}")


@contextmanager
def serving(world: World, process: Process, address: Address, *sources: Source) -> Iterator[None]:
    """Serve NBD at an address of the process's host in the block."""
    server = NbdServer(Path("/simulated"), *sources)
    listener: Any = world.network.listen(process, address)
    server.start(_Listening(listener))  # type: ignore[arg-type]  # a simulated socket
    try:
        yield
    finally:
        server.stop()


class _Listening(NamedTuple):
    """What the server needs of `blobstore.sockets.listening.Listener`."""

    socket: Any


def open_device(world: World, process: Process) -> BlockDevice:
    """Open the disk as a process of the host has it."""
    from tests.simulation.world import STORAGE

    if world.plan.place == "nbd":
        return NbdDisk(NbdAddress(socket=STORAGE, export=EXPORT), read_only=False)
    return world.disk.attach(process)


def _tell(world: World, process: Process, store: Store) -> None:
    found: dict[str, tuple[int, bytes | None]] = {}
    made: dict[str, Found] = {}
    for section in store.sections():
        try:
            blob = store.get(section.name)
        except UnwrittenBlobError:
            blob = None
        if section.name.startswith(PREFIX):
            made[section.name] = Found(section.max_size, blob)
        elif section.name in world.windows:
            world.windows[section.name].was_recovered(blob)
        else:
            found[section.name] = section.generation, blob
    world.structure.was_found(made)
    world.checker.recovered(process.name, found)
