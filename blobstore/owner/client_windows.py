"""Windows of a store that another process owns (O60 to O64)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.owner import documents, requests
from formats.devices.device import Device
from formats.errors import DeviceError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from blobstore.owner.exchange import Answer
    from formats.devices.device import ReadableBuffer, WritableBuffer


class ClientWindow(Device):
    """A section as a `BlockDevice`, in another process. `StoreClient.window` opens it.

    Its methods are those of `Window`, and others may use the window at the same time: as with
    `Store.shared_window`, a flush makes durable what any of them wrote. In addition each
    raises `DeviceError` if the owner went away: what was not flushed may be lost then.
    """

    def __init__(
        self, ask: Callable[[str, str, bytes, Mapping[str, str]], Answer], name: str
    ) -> None:
        """Open the window of a section; use `StoreClient.window` instead."""
        self._ask_owner = ask
        self._name = name
        self._closed = False
        self._info = self._open()

    def _open(self) -> documents.WindowInfo:
        answer = self._ask_owner("GET", self._target("info"), b"", {})
        return documents.decode(answer.body, documents.WindowInfo)

    @property
    def name(self) -> str:
        """The section's name."""
        return self._name

    @property
    def size(self) -> int:
        return self._info.size

    @property
    def block_size(self) -> int:
        return self._info.block_size

    @property
    def read_only(self) -> bool:
        """Whether it takes no writes."""
        return self._info.read_only

    @property
    def in_place(self) -> bool:
        """Whether writes go to the section's record directly."""
        return self._info.in_place

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        size = len(buffer)
        self._require_range(offset, size)
        if not size:
            return
        wanted = {"range": f"bytes={offset}-{offset + size - 1}"}
        data = self._ask("GET", "", "", b"", wanted).body
        if len(data) != size:
            raise FormatError(f"the owner answers {len(data)} bytes of a window, not {size}")
        buffer[:] = data

    def write(self, offset: int, data: ReadableBuffer, /, *, fua: bool = False) -> None:
        """Store ``data``; as `Window.write`."""
        content = bytes(memoryview(data).cast("B"))
        self._require_range(offset, len(content))
        query = f"&offset={offset}" + ("&fua" if fua else "")
        self._ask("PUT", "", query, content)

    def discard(self, offset: int, size: int, /) -> None:
        """Fill a range with zeros; errors as `write`."""
        self._require_range(offset, size)
        body = documents.encode(requests.ByteRange(offset, size))
        self._ask("POST", "discard", "", body)

    def flush(self) -> None:
        """Make durable what was written so far, by any user; errors as `write`."""
        self._require_open()
        self._ask("POST", "flush", "")

    def close(self) -> None:
        """Commit what was written, and let go of the window. Twice is fine.

        Raises:
            DeviceError, PoisonedStoreError: Not everything that was written is durable. This
                window is closed all the same.
        """
        if not self._closed:
            self._closed = True
            self._ask("POST", "close", "")

    def _ask(
        self,
        method: str,
        action: str,
        query: str,
        body: bytes = b"",
        more: dict[str, str] | None = None,
    ) -> Answer:
        target = f"{self._target(action)}?run={self._info.run}{query}"
        try:
            return self._ask_owner(method, target, body, more or {})
        except DeviceError:
            self._follow()
            raise
        except FormatError as error:
            if error.rule != "O64":
                raise
            self._follow()
            raise DeviceError(
                f"the owner was started again since the window of section {self._name!r} was"
                " opened: what was written and not flushed may be lost [O64]",
                hint="look what it holds",
            ) from error

    def _follow(self) -> None:
        """Go on with an owner that was started again, once the caller is told."""
        if self._closed:
            return
        try:
            self._info = self._open()
        except (DeviceError, FormatError, ValueError):
            return  # it is not there yet; the next caller is told again

    def _target(self, action: str) -> str:
        return requests.path_of("windows", self._name, action)

    def _require_range(self, offset: int, size: int) -> None:
        self._require_open()
        self._check_range(offset, size)

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("this window was closed")
