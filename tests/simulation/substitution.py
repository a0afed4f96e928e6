"""The product's own modules, with a simulated system in the place of the real one.

The code of the product names what it needs of the system by modules: `threading`, `time`,
`socket`, `select`, `selectors`, `secrets`, and `os.urandom`. While a simulation runs, these names
mean its own in every module of the product that it uses. Nothing else of the product is replaced.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
import secrets
import select
import selectors
import socket
import sys
import threading
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from formats.process import OwnedLock
from tests.simulation.socket_modules import SelectModule, SelectorsModule, SocketModule
from tests.simulation.threads import Threads, Time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.network import Network
    from tests.simulation.scheduler import Scheduler

#: Rooms whose modules are loaded before a simulation begins: those that are loaded later, where
#: they are needed, would find the real system.
_ROOMS: Final = (
    "blobstore.store",
    "blobstore.container",
    "blobstore.owner",
    "blobstore.nbd",
    "blobstore.image",
    "blobstore.sockets",
    "formats",
    "luks",
)
#: Modules in which the real system stays: they are about processes of the real one.
_LEFT_OUT: Final = ("formats.process",)


class _Secrets:
    """A module `secrets` of one simulation."""

    def __init__(self, source: random.Random) -> None:
        self._random = source

    def token_hex(self, size: int) -> str:
        return self._random.randbytes(size).hex()

    def randbelow(self, end: int) -> int:
        return self._random.randrange(end)


@cache
def _places() -> list[tuple[Any, str, object]]:
    """Return each module of the product, the name in it that is replaced, and what it is."""
    for room in _ROOMS:
        package = importlib.import_module(room)
        for found in pkgutil.walk_packages(package.__path__, f"{room}."):
            importlib.import_module(found.name)
    replaced = (threading, time, socket, select, selectors, secrets, OwnedLock)
    return [
        (module, name, value)
        for key, module in sorted(sys.modules.items())
        if key.split(".")[0] in {"blobstore", "formats", "luks"} and key not in _LEFT_OUT
        for name, value in sorted(vars(module).items())
        if any(value is one for one in replaced)
    ]


@contextmanager
def substituted(scheduler: Scheduler, network: Network, interleave: float) -> Iterator[None]:
    """Have the product use the system of a simulation in the block."""
    # A source of its own: the product tries its ciphers, with random keys, once in each process.
    source = random.Random(scheduler.random.random())
    threads = Threads(scheduler, interleave)
    simulated: dict[int, object] = {
        id(threading): threads,
        id(time): Time(scheduler),
        id(socket): SocketModule(network),
        id(select): SelectModule(),
        id(selectors): SelectorsModule(network),
        id(secrets): _Secrets(source),
        id(OwnedLock): threads.owned_lock,
    }
    places, urandom = _places(), os.urandom
    try:
        os.urandom = source.randbytes
        for module, name, value in places:
            setattr(module, name, simulated[id(value)])
        yield
    finally:
        os.urandom = urandom
        for module, name, value in places:
            setattr(module, name, value)
