"""Reading what somebody else may be writing, without a lock (C66).

What is read is of different moments, so it may contradict itself although the
image never does. Errors do not tell: a passing one can come twice. Bytes do: if
everything that led to an error is read again and is the same, it was so all the
time in between, and so there was a moment at which all of the image was like that.
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING, Final, TypeVar

from formats.devices.device import SliceDevice
from formats.devices.file import FileDevice
from formats.errors import DeviceBusyError, ForkedProcessError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from formats.devices.device import BlockDevice

_Result = TypeVar("_Result")

#: How often, and for how many seconds, an image is read that keeps changing. Few
#: tries are made however long they take, for one may derive keys.
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
    """Return what ``attempt`` returns, or raise its error, once the image held still for it.

    Args:
        device: What is read, in the end. If it is not a file, or is watched already by
            another one of these, ``attempt`` is just called.
        attempt: Reads, from the beginning: nothing that was read before.
        settled: Says whether a result is what an image is like that nobody is writing;
            otherwise it counts only if the image held still.
        busy: Class of the error if it never does.

    Raises:
        StorageError: As ``attempt``; or ``busy``.
    """
    file = _file(device)
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
            # How large the file is matters to who missed something.
            if reads.are_still_true() and not reads.grew:
                raise
            last = error
    raise busy(
        f"the image is being written: it changed while it was read, {tries} times [C66]",
        hint="try again when it is written less, or wait for the lock",
    ) from last


class _Reads:
    """What was read of a file; whether it is still there."""

    def __init__(self, file: FileDevice) -> None:
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


def _file(device: BlockDevice) -> FileDevice | None:
    while isinstance(device, SliceDevice):
        device = device.base
    return device if isinstance(device, FileDevice) else None
