"""How the decryption of a LUKS2 volume begins, in place (L168)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from formats.errors import ArgumentError
from formats.frozen import replace
from luks.errors import KeyslotsFullError
from luks.keys.keyslots import unlock
from luks.keys.reencryption import VolumeKeys
from luks.model import Segment
from luks.reencryption.headers import KeyDigests
from luks.reencryption.luks2 import protected_size
from luks.reencryption.luks2_begin import begun, loaded, payload_size
from luks.reencryption.placing import copy_first_bytes
from luks.reencryption.plan import ForwardPlan, ShiftedDecryption
from luks.reencryption.record import Intent, record_of, with_record

if TYPE_CHECKING:
    from luks.header.luks2_reencrypt_rules import ReencryptRecord
    from luks.reencryption.interface import ReencryptionOptions
    from luks.reencryption.luks2 import Luks2Reencryption, Places
    from luks.reencryption.luks2_begin import Access
    from luks.reencryption.plan import Plan

#: Most bytes that are copied over the header, as in cryptsetup, which continues the last
#: step only if they are as many as the shift, or this many. That step has them in memory.
_MOST_MOVED: Final = 20 << 20


def begin_decryption(
    places: Places, access: Access, options: ReencryptionOptions
) -> Luks2Reencryption:
    """Begin to decrypt a LUKS2 volume with a detached header; see `luks.begin_decryption`.

    The payload stays where it is, or moves to the start of the image: see
    `ReencryptionOptions.data_shift`.
    """
    with places.locked(), ExitStack() as failed:  # which wipes the key
        header, old = loaded(places, access)
        size = payload_size(places, old)
        number = header.volume_digest
        assert number is not None  # or the payload could not be opened
        shift = _shift(old, options)
        key = unlock(
            places.header, header, access.secrets[0], limits=access.limits, policy=access.policy
        )
        keys = VolumeKeys({number: key})
        failed.callback(keys.wipe)
        new = Segment("linear", old.offset - shift, None)
        # Forward also where cryptsetup would go backward: after a crash in the last zone
        # of a backward run it forgets that it has finished, and begins again (L169).
        intent = Intent("decrypt", "forward", old.sector_size, size, shift)
        composed = with_record(header, intent, options)
        record = record_of(composed)
        plan: Plan
        if not shift:
            plan = ForwardPlan(record, old, new, size, False)
        else:
            moved = _moved(record, old, size)
            plan = ShiftedDecryption(record, old, new, size, False, moved)
            copy_first_bytes(places.image, old.offset, 0, moved.size or 0)
        running = begun(places, composed, {}, plan, keys, KeyDigests(number, None), options)
        failed.pop_all()
        return running


def _shift(old: Segment, options: ReencryptionOptions) -> int:
    """Return the bytes by which the payload moves."""
    if old.offset == 0 or options.data_shift == 0:
        return 0
    if options.data_shift != old.offset:
        raise ArgumentError(
            f"the payload begins at byte {old.offset} of the image: data_shift must be"
            f" {old.offset}, which moves it to the start of the image, over whatever is there, or"
            " 0, which leaves it where it is [L168]"
        )
    if options.resilience == "none":
        raise ArgumentError("with data shift, resilience is 'checksum' or 'journal'")
    return old.offset


def _moved(record: ReencryptRecord, old: Segment, size: int) -> Segment:
    """Return the first bytes of the payload, at the place that they are copied to."""
    limit = protected_size(record, record.resilience.removeprefix("datashift-"))
    limit = min(limit, _MOST_MOVED, record.shift_size, size)
    if limit < size:
        limit -= limit % old.sector_size
    if limit == 0:
        raise KeyslotsFullError("the keyslots area has no room for what protects a sector")
    return replace(old, offset=0, size=limit)
