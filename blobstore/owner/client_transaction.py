"""Transactions that a client keeps until their end, and then sends as one request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blobstore.errors import BlobNotFoundError, UnwrittenBlobError
from blobstore.owner import requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.devices.device import ReadableBuffer


class ClientTransaction:
    """Changes that an owner makes together or not at all. `StoreClient.transaction` makes them.

    Attributes:
        generation: Of its commit; None until there is one, or if nothing changed.
    """

    def __init__(
        self,
        read: Callable[[str], tuple[bytes, int]],
        commit: Callable[[list[requests.Change]], int | None],
    ) -> None:
        """Start with nothing to do.

        Args:
            read: Returns the blob of a section, with its generation.
            commit: Makes changes, and returns the generation of that.
        """
        self._get, self._commit = read, commit
        self._read: dict[str, int] = {}
        self._changes: list[requests.Change] = []
        # Blobs that were put, names that were given up, and what the store calls sections that
        # were renamed to this; None for those that are new. All by what they are called here.
        self._blobs: dict[str, bytes] = {}
        self._gone: set[str] = set()
        self._origins: dict[str, str | None] = {}
        self._ended = False
        self.generation: int | None = None

    def get(self, name: str) -> bytes:
        """Return the blob of a section as it will be."""
        self._require_open()
        if name in self._blobs:
            return self._blobs[name]
        if name in self._gone and name not in self._origins:
            raise BlobNotFoundError(f"there is no section {name!r} any more")
        stored = self._origins.get(name, name)
        unwritten = UnwrittenBlobError(f"section {name!r} was registered and never written")
        if stored is None:
            raise unwritten
        try:
            blob, self._read[stored] = self._get(stored)
        except BlobNotFoundError:
            if any(
                isinstance(c, requests.RegisterChange) and c.name == name for c in self._changes
            ):
                raise unwritten from None
            raise
        return blob

    def require_generation(self, name: str, generation: int) -> None:
        """Make changes only if a section has been at this generation until now."""
        self._add(requests.RequireChange(name, generation))

    def put(self, name: str, data: ReadableBuffer) -> None:
        """Replace the blob of a section; ``data`` is copied."""
        blob = bytes(memoryview(data).cast("B"))
        self._add(requests.PutChange(name, blob))
        self._blobs[name] = blob

    def register(
        self,
        name: str,
        max_size: int,
        kind: str = "blob",
        *,
        copies: int | None = None,
        type: str = "",  # noqa: A002  the field's name in the format
    ) -> None:
        """Make sure that a section exists and is large enough."""
        self._add(requests.RegisterChange(name, max_size, kind, copies, type))
        if name in self._gone:
            self._origins.setdefault(name, None)

    def resize(self, name: str, max_size: int) -> None:
        """Change the worst-case size of a section, to more or to less."""
        self._add(requests.ResizeChange(name, max_size))

    def rename(self, name: str, new: str) -> None:
        """Give a section another name."""
        self._add(requests.RenameChange(name, new))
        if name == new:
            return
        self._origins[new] = self._origins.pop(name, name)
        if name in self._blobs:
            self._blobs[new] = self._blobs.pop(name)
        self._gone.add(name)

    def delete(self, name: str) -> None:
        """Delete a section and its blob."""
        self._add(requests.DeleteChange(name))
        self._origins.pop(name, None)
        self._blobs.pop(name, None)
        self._gone.add(name)

    def abandon(self) -> None:
        """Forget all changes; the transaction takes no more."""
        self._ended = True

    def commit(self) -> None:
        """Make the changes, all of them or none; `Transaction.commit` says what it raises."""
        self._require_open()
        self._ended = True
        if self._changes:
            read: list[Any] = [requests.RequireChange(*known) for known in self._read.items()]
            self.generation = self._commit([*read, *self._changes])

    def _add(self, change: requests.Change) -> None:
        self._require_open()
        self._changes.append(change)

    def _require_open(self) -> None:
        if self._ended:
            raise ValueError("this transaction has ended")
