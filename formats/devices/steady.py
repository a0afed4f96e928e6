"""Reading an image without a lock while another process may be writing it (C66).

The bytes are read at different moments, so they may contradict each other although
the image never does. An error does not prove damage: a transient one can occur twice.
The bytes are proof: if everything that led to an error is read again and has not
changed, then all of it was in the image at one moment.
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING, Final, TypeVar

from formats.devices.device import SharedDevice, SliceDevice
from formats.errors import DeviceBusyError, ForkedProcessError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from formats.devices.device import BlockDevice

_Result = TypeVar("_Result")

#: How often, and for how many seconds, to read an image that keeps changing. A few
#: tries are made even if they take longer, because each may derive keys.
TRIES: Final = 500
FEW: Final = 4
SECONDS: Final = 5.0
#: Seconds between two tries: first, and at most.
_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.03


def steadily(
    device: BlockDevice,
    attempt: Callable[[], _Result],
    *,
    settled: Callable[[_Result], bool] = lambda _: True,
    busy: type[StorageError] = DeviceBusyError,
) -> _Result:
    """Return the result of ``attempt``, or raise its error, once the image did not change.

    Args:
        device: The device that is read at the bottom. If other processes cannot use it, or
            an outer call of this function watches it already, ``attempt`` is simply called.
        attempt: Reads everything from the beginning, and reuses no earlier read.
        settled: Says whether a result shows that no process is writing the image; any
            other result counts only if the image did not change.
        busy: Class of the error if the image keeps changing.

    Raises:
        StorageError: As ``attempt``; or ``busy``.
    """
    file = _shared(device)
    if file is None or file.observer is not None:
        return attempt()
    end = time.monotonic() + SECONDS
    pause = _PAUSE
    tries = 0
    last: StorageError | None = None
    while tries < FEW or (tries < TRIES and time.monotonic() < end):
        if tries:
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
        tries += 1
        reads = _Reads(file)
        try:
            with reads:
                result = attempt()
            if settled(result) or reads.are_still_true():
                return result
        except ForkedProcessError:
            raise
        except StorageError as error:
            # An attempt that missed bytes depends on the size of the file as well.
            if reads.are_still_true() and not reads.grew:
                raise
            last = error
    raise busy(
        f"the image is being written: it changed while it was read, {tries} times [C66]",
        hint="try again when less is written to it, or wait for the lock",
    ) from last


class _Reads:
    """The bytes read from a device, and whether the device still holds them."""

    def __init__(self, file: SharedDevice) -> None:
        self._file = file
        self._reads: list[tuple[int, int, int]] = []
        file.measure()
        self._size = file.size

    def __enter__(self) -> None:
        self._file.observer = self._note

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.observer = None

    def _note(self, offset: int, data: memoryview) -> None:
        self._reads.append((offset, len(data), zlib.crc32(data)))

    @property
    def grew(self) -> bool:
        self._file.measure()
        return self._file.size != self._size

    def are_still_true(self) -> bool:
        try:
            self._file.measure()
            return all(
                zlib.crc32(self._file.read(offset, size)) == known
                for offset, size, known in self._reads
            )
        except ForkedProcessError:
            raise
        except StorageError:
            return False


def _shared(device: BlockDevice) -> SharedDevice | None:
    while isinstance(device, SliceDevice):
        device = device.base
    return device if isinstance(device, SharedDevice) else None
