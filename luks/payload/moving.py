"""A volume whose segments change while it is read and written, as in a re-encryption."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from formats.errors import ArgumentError
from luks.payload.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer
    from luks.header.policy import Policy
    from luks.keys.reencryption import VolumeKeys
    from luks.model import Header


class MovingVolume(Volume):
    """A volume that is re-encrypted while it is in use (L184).

    Reads and writes take turns with the steps of the re-encryption, so that none sees
    segments that are being changed. What re-encrypts holds the volume (`held`) while it
    moves bytes, and then says how the header describes the payload now (`follow_header`).
    """

    def __init__(
        self, device: BlockDevice, header: Header, keys: VolumeKeys, *, policy: Policy
    ) -> None:
        """Open the payload for writing; arguments and errors as `Volume`.

        The device stays the caller's, also when this is closed.
        """
        super().__init__(device, header, keys, read_only=False, policy=policy)
        self._turn = threading.Lock()
        # A lock goes to whoever asks first after its release, which is the thread that
        # released it. So each side lets those of the other side pass that wait already.
        self._requests = threading.Lock()
        self._steps = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep reads and writes out. It must not be nested, nor this volume be used inside."""
        self._owner.require()
        with self._steps, self._requests:
            pass
        with self._turn:
            yield

    @contextmanager
    def _request(self) -> Iterator[None]:
        self._owner.require()
        with self._steps:
            pass
        with self._requests, self._turn:
            yield

    def follow_header(self, header: Header) -> None:
        """Read and write by another header from now on; call it while the volume is held.

        If it fails, the volume is as before.

        Args:
            header: That of the same payload after a step, or at the end.

        Raises:
            ArgumentError: It needs a key that the volume does not have, or the size of the
                payload would change.
            LuksHeaderError, TruncatedImageError: Its segments do not fit the image.
        """
        self._check_open()
        missing = set(header.payload_digests) - self._keys.by_digest.keys()
        if missing:
            raise ArgumentError(f"the key of digest {min(missing)} is missing [L180]")
        segments = self._opened(header)
        size = sum(segment.size for segment in segments)
        if size != self.size:
            raise ArgumentError(f"the payload would have {size} bytes instead of {self.size}")
        self._take(header, segments)

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        with self._request():
            super().read_into(offset, buffer)

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        with self._request():
            super().write(offset, data)

    def write_durably(self, offset: int, data: ReadableBuffer, /) -> None:
        with self._request():
            super().write(offset, data)
            super().flush()

    def flush(self) -> None:
        with self._request():
            super().flush()

    def discard(self, offset: int, size: int, /) -> None:
        """Give the space of a range back to the image; as `Volume.discard`."""
        with self._request():
            super().discard(offset, size)

    def backed_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield what in a range of the payload has space of its own in the image."""
        with self._request():
            ranges = list(super().backed_ranges(offset, size))
        yield from ranges

    def reserve(self, offset: int, size: int, /) -> None:
        """Have the image find the space for a range; as `Volume.reserve`."""
        with self._request():
            super().reserve(offset, size)

    def resize(self, size: int, /) -> None:
        """Resize the image; as `Volume.resize`, which refuses it during a re-encryption."""
        with self._request():
            super().resize(size)

    def follow_image(self) -> None:
        """Take the size that the image has now; during a re-encryption it stays as it is."""
        with self._request():
            if not self.header.requirements:
                super().follow_image()

    def close(self) -> None:
        """Wipe the keys, when what is under way has ended; twice is fine."""
        if self._owner.is_other:
            super().close()
            return
        with self._request():
            super().close()
