"""Mending damaged heads with what the rest of the store tells: C67, C71.

Each head that is mended may tell where others lie and what they said, so this
goes on until it finds no more, within what its caller has patience for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.container.authentication import Authenticator
from blobstore.container.proving import mend_free
from blobstore.container.repair.mending import mend_record
from blobstore.container.repair.overlay import Overlay
from blobstore.container.repair.remains import Lost, Remains
from blobstore.container.repair.survey import Survey
from blobstore.container.scan import Damaged, scan_items
from blobstore.container.sections import Copy
from formats.container.decoder import decode_item
from formats.container.model import HEAD_SIZE, Free
from formats.devices.device import read_exactly
from formats.errors import DeviceError, FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from blobstore.container.proving import Patience
    from blobstore.container.scan import Scan
    from formats.devices.device import BlockDevice

# How often heads are read again for what was mended, where patience has an end.
_ROUNDS = 4

# The most generations that a record may have which no other head tells of.
_MAX_GENERATIONS = 64


def mend(device: BlockDevice, found: Scan, patience: Patience) -> Scan:
    """Return a scan with the heads mended that their checks and the store prove.

    Args:
        device: Of the container; only read.
        found: What a scan found, in which heads are damaged; not modified.
        patience: What may be tried; what is, is taken from it.
    """
    return _Mender(device, found, patience).run()


class _Mender:
    def __init__(self, device: BlockDevice, found: Scan, patience: Patience) -> None:
        self._device = device
        self._found = found
        self._patience = patience
        self._authenticator = Authenticator.of(found.header)
        self._block_size = found.header.block_size
        self._tried: set[int] = set()

    def run(self) -> Scan:
        overlay = Overlay(self._device)
        overlay.heads.update(self._found.mended)
        rounds = 0
        while self._patience.left is None or (rounds < _ROUNDS and self._patience.left > 0):
            rounds += 1
            mended = self._mend(Survey(self._found))
            if not mended:
                break
            overlay.heads.update(mended)
            self._found = scan_items(overlay, self._found, patience=self._patience)
            overlay.heads.update(self._found.mended)
        damaged = {offset for offset, item in self._found.items if isinstance(item, Damaged)}
        proved = {o: head for o, head in overlay.heads.items() if o not in damaged}
        return self._found._replace(mended=proved)

    def _mend(self, survey: Survey) -> dict[int, bytes]:
        attested = survey.attested()
        mended = {}
        for offset, lost, length in _places(survey):
            if offset not in self._tried:
                self._tried.add(offset)
                head = self._mended(survey, offset, lost, length, attested)
                if head is not None:
                    mended[offset] = head
        return mended

    def _mended(
        self,
        survey: Survey,
        offset: int,
        lost: Lost | None,
        length: int,
        attested: Sequence[tuple[int, bytes]],
    ) -> bytes | None:
        try:
            head = read_exactly(self._device, offset, HEAD_SIZE)
        except DeviceError:
            return None
        lost = lost or self._as_read(offset, head)
        if lost:
            known = dict.fromkeys(number for number, _ in attested)
            every = range(survey.generation + 1, -1, -1)
            mended = mend_record(
                self._authenticator,
                Remains(self._device, self._authenticator, lost, self._block_size),
                dict.fromkeys((*known, *every[:_MAX_GENERATIONS])),
                dict.fromkeys((bytes(32), *(root for _, root in attested))),
                self._patience,
            )
            if mended is not None:
                return mended
        return mend_free(self._authenticator, offset, head, length, attested, self._patience)

    def _as_read(self, offset: int, head: bytes) -> Lost | None:
        """Return a record without a twin as its damaged head has it, if that makes sense."""
        try:
            item = decode_item(head, self._block_size)
        except (FormatError, UnsupportedError):
            return None
        if isinstance(item, Free):
            return None
        copy = Copy(offset, item.identity, item.version, item.length, item.frame)
        return Lost(offset, item.identity, item.length, item.frame, copy)


def _places(survey: Survey) -> Iterator[tuple[int, Lost | None, int]]:
    """Yield offset, record if one is known to lie there, and length of what heads hide."""
    for lost in survey.lost:
        yield lost.offset, lost, lost.length
    for start, end in survey.gaps:
        yield start, None, end - start
