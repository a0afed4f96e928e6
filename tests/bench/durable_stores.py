"""Stores that keep small blobs durably, each in a process of its own.

    python -m tests.bench.durable_stores KIND DIRECTORY

reads a line ``["NAME", ...] SIZE`` in JSON for each burst, puts random blobs of that
size under these names, and answers with the seconds that each put took. All but
``blobstore`` come with nothing but Python and the package they are named after.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

_MIB = 1 << 20
_ROOM = 64 * _MIB
_BLOCK = 4096


class DurableStore(Protocol):
    """What is measured: a put that survives a power cut once it returned."""

    def put(self, name: str, data: bytes, /) -> object: ...

    def get(self, name: str, /) -> bytes: ...


class Preallocated:
    """One write and one flush in space that is there and was written: the disk's own limit."""

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory / "blobs", os.O_RDWR | os.O_CREAT, 0o600)
        for start in range(0, _ROOM, _MIB):
            os.pwrite(self._file, b"\1" * _MIB, start)
        os.fsync(self._file)
        self._next = 0
        self._places: dict[str, tuple[int, int]] = {}

    def put(self, name: str, data: bytes, /) -> None:
        size = len(data) + -len(data) % _BLOCK
        start = self._next if self._next + size <= _ROOM else 0
        os.pwrite(self._file, data, start)
        os.fdatasync(self._file)
        self._places[name] = (start, len(data))
        self._next = start + size

    def get(self, name: str, /) -> bytes:
        start, size = self._places[name]
        return os.pread(self._file, size, start)


class Files:
    """A file for each blob: written beside the old one, flushed, renamed, directory flushed."""

    def __init__(self, directory: Path) -> None:
        self._path = directory
        self._directory = os.open(directory, os.O_RDONLY)

    def put(self, name: str, data: bytes, /) -> None:
        new = self._path / "new"
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(file, data)
        os.fsync(file)
        os.close(file)
        new.rename(self._path / name)
        os.fsync(self._directory)

    def get(self, name: str, /) -> bytes:
        return (self._path / name).read_bytes()


class Sqlite:
    """SQLite with a write-ahead log that is flushed by each transaction."""

    module = "sqlite3"
    key = ""

    def __init__(self, directory: Path) -> None:
        module: Any = importlib.import_module(self.module)
        self._database = module.connect(str(directory / "database"), isolation_level=None)
        if self.key:
            self._database.execute(f'PRAGMA key = "{self.key}"')
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("CREATE TABLE blobs (name TEXT PRIMARY KEY, data BLOB)")

    def put(self, name: str, data: bytes, /) -> None:
        self._database.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?)", (name, data))

    def get(self, name: str, /) -> bytes:
        query = "SELECT data FROM blobs WHERE name = ?"
        data: bytes = self._database.execute(query, (name,)).fetchone()[0]
        return data


class SqlCipher(Sqlite):
    """The same, encrypted, with a key that needs no derivation."""

    module = "sqlcipher3.dbapi2"
    key = f"x'{bytes(range(32)).hex()}'"


class Lmdb:
    """LMDB; each transaction is flushed."""

    def __init__(self, directory: Path) -> None:
        lmdb: Any = importlib.import_module("lmdb")
        self._environment = lmdb.open(str(directory), map_size=8 << 30)

    def put(self, name: str, data: bytes, /) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.put(name.encode(), data)

    def get(self, name: str, /) -> bytes:
        with self._environment.begin() as transaction:
            return bytes(transaction.get(name.encode()))


def _blobstore(directory: Path) -> DurableStore:
    """Return the real store: LUKS2, 4096-byte sectors, two copies, authentication."""
    from tests.bench.store_plugin import sectors_of_4096

    return sectors_of_4096(str(directory))


STORES = {
    "blobstore": _blobstore,
    "preallocated": Preallocated,
    "files": Files,
    "sqlite": Sqlite,
    "sqlcipher": SqlCipher,
    "lmdb": Lmdb,
}


def _burst(store: DurableStore, names: list[str], size: int) -> list[float]:
    """Put, and then compare what is there."""
    blobs = {name: os.urandom(size) for name in names}
    seconds = []
    for name, blob in blobs.items():
        started = time.perf_counter()
        store.put(name, blob)
        seconds.append(time.perf_counter() - started)
    for name, blob in blobs.items():
        if store.get(name) != blob:
            raise RuntimeError(f"{name} came back as something else")
    return seconds


def main() -> None:
    """Serve until there is no more to do."""
    kind, directory = sys.argv[1:]
    store = STORES[kind](Path(directory))
    for line in sys.stdin:
        names, size = json.loads(line)
        print(json.dumps(_burst(store, names, size)), flush=True)


if __name__ == "__main__":
    main()
