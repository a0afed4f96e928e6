"""States on their way from one TPM to another: what is sent, what is taken (V31, V32)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.errors import StateAuthenticationError
from blobstore.vtpm.libtpms import Result
from formats.errors import FormatError, UnsupportedError
from formats.logs import LateLogger
from formats.state.swtpm import EncryptedState, PlainState, Slot, TpmVersion, validate_slot
from formats.state.swtpm_migration import decode_data, decode_transfer, encode_data, encode_transfer
from formats.state.swtpm_older import is_in_the_clear, older_transfer

if TYPE_CHECKING:
    from blobstore.foreign.encryption import StateKey

_log = LateLogger(__name__)


def sent(state: bytes, key: StateKey | None) -> bytes:
    """Return a state as it is transferred, encrypted if there is a key (V31)."""
    fields = encode_data(PlainState(state))
    # What is encrypted are the fields themselves.
    return encode_transfer(key.encrypt(PlainState(fields)) if key else fields)


def received(
    slot: Slot, transfer: bytes, version: TpmVersion, key: StateKey | None
) -> tuple[int, bytes]:
    """Return the state in a transfer, or why it is refused, which is logged (V32).

    An empty one means that there is none; a permanent one must not be empty.

    Returns:
        `Result.SUCCESS` and the state, empty if there is none; or another result.
    """
    if not transfer and slot is not Slot.PERMANENT:
        return Result.SUCCESS, b""
    what = f"the incoming {slot.name.lower()} state"
    try:
        state = _decoded(transfer, key, what)
        if state is None:
            _log.error("%s is encrypted, and there is no migration key", what)
            return Result.KEY_NOT_FOUND, b""
        validate_slot(state, slot, version)
    except UnsupportedError as error:
        _log.error("%s", error)
        return Result.KEY_NOT_FOUND, b""
    except StateAuthenticationError as error:
        _log.error("%s: %s", what, error)
        return Result.DECRYPT_ERROR, b""
    except FormatError as error:
        _log.error("%s", error)
        return Result.BAD_PARAMETER, b""
    return Result.SUCCESS, state.data


def _decoded(transfer: bytes, key: StateKey | None, what: str) -> PlainState | None:
    """Return the state in a transfer; None if it is encrypted and there is no key."""
    older = older_transfer(transfer, what)
    if older is not None:
        if is_in_the_clear(older):
            return PlainState(older)
        return None if key is None else key.decrypt_older(older)
    fields = decode_transfer(transfer, what)
    if isinstance(fields, EncryptedState):
        if key is None:
            return None
        fields = key.decrypt(fields).data
    return decode_data(fields, what)
