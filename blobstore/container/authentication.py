"""Checks, macs and the root: section 3 of `spec/container.md` (C20 to C24)."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Protocol

from formats.container.decoder import locate_check
from formats.container.encoder import encode_free
from formats.container.model import DIGEST_SIZE, HEAD_SIZE, Authentication, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blobstore.container.sections import Copy
    from formats.container.encoder import RecordFrame
    from formats.container.model import ContainerHeader, Free, Version
    from formats.devices.device import ReadableBuffer

_STATE_SIZE = 512
_ZEROS = bytes(DIGEST_SIZE)
#: How many numbers of sections are kept, half a KiB each.
_RECENT = 64
_STATE_MASK = (1 << 8 * _STATE_SIZE) - 1


class RunningMac(Protocol):
    """A hash or HMAC under way, as `hashlib` and `hmac` have them."""

    def update(self, data: ReadableBuffer, /) -> None: ...
    def copy(self) -> RunningMac: ...
    def digest(self) -> bytes: ...


class Authenticator:
    """Makes and compares the digests of one store.

    Safe to share between threads: each digest starts from a copy.
    """

    def __init__(self, algorithm: Authentication, key: bytes, store_id: bytes) -> None:
        """Prepare for a store with this authentication, key and id (C20)."""

        def start(label: str) -> RunningMac:
            text = f"blobstore/1 {label}".encode() + store_id
            if algorithm is Authentication.HMAC_SHA256:
                return hmac.new(key, text, "sha256")
            return hashlib.sha256(text)

        self._head, self._blob, self._root = start("head"), start("blob"), start("root")
        self._member = b"blobstore/1 memb" + store_id
        self._recent: dict[bytes, int] = {}

    @classmethod
    def of(cls, header: ContainerHeader) -> Authenticator:
        """Return the authenticator of the store with this header."""
        return cls(header.authentication, header.key, header.store_id)

    def with_check(self, offset: int, head: bytes, check_start: int) -> bytes:
        """Return ``head`` with its check filled in (C21).

        Args:
            offset: Of the item in the container, in bytes.
            head: 512 bytes; what it has as check counts as zero.
            check_start: Where the check is in it.
        """
        check = self._check(offset, head, check_start)
        return b"".join((head[:check_start], check, head[check_start + DIGEST_SIZE :]))

    def record_head(self, offset: int, frame: RecordFrame, version: Version) -> bytes:
        """Return the head of a record, its check filled in.

        Args:
            offset: Of the record in the container, in bytes.
            frame: Of the record.
            version: What the head is to say.
        """
        return self.with_check(offset, frame.head(version), frame.check_start)

    def free_head(self, offset: int, item: Free) -> bytes:
        """Return the head of a free item at byte ``offset``, its check filled in."""
        head = encode_free(item)
        return self.with_check(offset, head, locate_check(head))

    def member_of(self, copy: Copy | None) -> int:
        """Return what the newest record of a section adds to the state (C24).

        Args:
            copy: The record; None, and a tombstone, add nothing.
        """
        if copy is None or copy.version.state is State.TOMBSTONE:
            return 0
        return self.member(copy.frame.mac_input(copy.version), copy.version.mac)

    def is_sound(self, offset: int, head: bytes, check_start: int) -> bool:
        """Say whether the check of a head agrees (C21)."""
        check = head[check_start : check_start + DIGEST_SIZE]
        return hmac.compare_digest(check, self._check(offset, head, check_start))

    def mac(self, meta: bytes, blob: Iterable[ReadableBuffer] = ()) -> bytes:
        """Return the mac of a record (C22).

        Args:
            meta: From `RecordFrame.mac_input`.
            blob: The ``size`` bytes of the blob, in pieces.
        """
        state = self.start_mac(meta)
        for piece in blob:
            state.update(piece)
        return state.digest()

    def start_mac(self, meta: bytes) -> RunningMac:
        """Return the mac of a record that is fed its blob piece by piece; as `mac`."""
        state = self._blob.copy()
        state.update(meta)
        return state

    def member(self, meta: bytes, mac: bytes) -> int:
        """Return the number that stands for a section in the state (C24).

        Args:
            meta: Of its newest record, from `RecordFrame.mac_input`.
            mac: Of the same record.
        """
        text = b"".join((self._member, meta, mac))
        number = self._recent.get(text)
        if number is None:
            number = int.from_bytes(hashlib.shake_256(text).digest(_STATE_SIZE), "big")
            # A commit adds its record, and the next commit of the section subtracts it.
            if len(self._recent) >= _RECENT:
                self._recent.clear()
            self._recent[text] = number
        return number

    def root(self, state: int) -> bytes:
        """Return the root of a state, a sum of members (C24)."""
        digest = self._root.copy()
        digest.update((state & _STATE_MASK).to_bytes(_STATE_SIZE, "big"))
        return digest.digest()

    def _check(self, offset: int, head: bytes, start: int) -> bytes:
        state = self._head.copy()
        rest = head[start + DIGEST_SIZE : HEAD_SIZE]
        state.update(b"".join((offset.to_bytes(8, "big"), head[:start], _ZEROS, rest)))
        return state.digest()
