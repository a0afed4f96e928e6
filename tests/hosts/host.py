"""What runs on a host: it writes to the store at a place, or takes the place over.

    python -m tests.hosts.host make PLACE
    python -m tests.hosts.host write PLACE
    python -m tests.hosts.host take PLACE

Each put is a number; a line says it as soon as the put is durable. An error ends the program,
with a line that tells it. `take` waits for a line on its standard input before it begins, so that
its start does not count.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import replace

import blobstore
from blobstore.image.remote.nbd_connection import NbdAddress
from blobstore.image.remote.nbd_disk import NbdDisk
from blobstore.image.remote.places import address_of, open_remote
from blobstore.image.remote.rbd_disk import RbdDisk

SECTION = "tpm"
#: Bytes of a blob, so that one put is several sectors and packets.
SIZE = 6000
#: Seconds that an NBD server may be silent, and that connecting again is tried for.
SILENT, RECONNECTING = 1.0, 2.0


def blob(number: int) -> bytes:
    """Return what a put writes."""
    return (b"%d " % number).ljust(SIZE, b"%x" % (number % 16))


def number_of(content: bytes) -> int:
    """Return which put wrote this; no other bytes are possible."""
    number = int(content.split(b" ", 1)[0])
    assert content == blob(number)
    return number


def opened(place: str, stack: ExitStack, *, fence: bool) -> blobstore.Store:
    """Open the store at a place for writing, over the dead body of its owner if need be."""
    address = address_of(place)
    if isinstance(address, NbdAddress):
        disk: NbdDisk | RbdDisk = NbdDisk(
            replace(address, timeout=SILENT), read_only=False, reconnecting=RECONNECTING
        )
        stack.callback(disk.close)
    else:
        disk = RbdDisk(address, read_only=False, lock=not fence)
        stack.callback(disk.close)
        if fence:
            disk.fence()
    return blobstore.Store.on_device(disk, encrypted=False, resources=stack)


def make(place: str) -> None:
    """Make a store there in which the first number is put."""
    with open_remote(place, read_only=False) as disk:
        spec = blobstore.SectionSpec(SECTION, SIZE, content=blob(0))
        blobstore.initialise(disk, [spec], encrypted=False)


def write(place: str) -> None:
    """Put one number after the other."""
    with ExitStack() as stack:
        store = opened(place, stack.pop_all(), fence=False)
        number = number_of(store.get(SECTION))
        print(number, flush=True)
        while True:
            number += 1
            try:
                store.put(SECTION, blob(number))
            except blobstore.StorageError as error:
                print(f"refused {type(error).__name__}: {error}", flush=True)
                return
            print(number, flush=True)


def take(place: str) -> None:
    """Take over and put once, when told; say how long that took, and what was there."""
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    with ExitStack() as stack:
        store = opened(place, stack.pop_all(), fence=True)
        number = number_of(store.get(SECTION))
        store.put(SECTION, blob(number + 1))
        print(f"{time.monotonic() - began:.3f} {number}", flush=True)
        # As long as it lives, it is the owner.
        sys.stdin.readline()
        print(number_of(store.get(SECTION)), flush=True)
        store.close()


if __name__ == "__main__":
    {"make": make, "write": write, "take": take}[sys.argv[1]](sys.argv[2])
