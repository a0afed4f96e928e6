"""TPM state as swtpm stored it before it had fields, or a header at all (F23).

swtpm still starts from such states, so they are imported; they are never written.
"""

from __future__ import annotations

from typing import Final

from formats.errors import FormatError, TruncatedImageError
from formats.state.swtpm import TPM_2_MAGIC

_HEADER_SIZE: Final = 10
_LARGEST_HEADER: Final = 255  # that a later version may have, for all that is known
_TPM_12: Final = b"\x00\x01"
_BLOCK: Final = 16  # of AES, in bytes


def older_content(state: bytes, what: str) -> bytes | None:
    """Return what follows the header of version 1, or the whole state if it has no header.

    It is libtpms's data, or ciphertext: `is_in_the_clear` tells.

    Args:
        state: The whole content of a state file.
        what: Its name in messages.

    Returns:
        None if it has a header of a later version, or cannot be a state at all.

    Raises:
        TruncatedImageError, FormatError: It has a header of version 1 that gives another size.
    """
    if is_in_the_clear(state):
        return state
    if not (state[:1] > b"\0" and _HEADER_SIZE <= int.from_bytes(state[2:4]) <= _LARGEST_HEADER):
        return state if state and len(state) % _BLOCK == 0 else None
    if state[0] != 1 or len(state) < _HEADER_SIZE:
        return None
    total = int.from_bytes(state[6:10])
    if len(state) < total:
        raise TruncatedImageError(
            f"{what} is cut short: it has {len(state)} bytes of {total}", rule="F23"
        )
    if len(state) > total:
        raise FormatError(f"{what} continues after its {total} bytes", rule="F23")
    return state[_HEADER_SIZE:]


def older_transfer(transfer: bytes, what: str) -> bytes | None:
    """Return what follows the header of version 1 of a state on its way (V107).

    It is libtpms's data, or ciphertext: `is_in_the_clear` tells.

    Args:
        transfer: The bytes from the control channel.
        what: Its name in messages.

    Returns:
        None if it has a header of a later version, or none.

    Raises:
        TruncatedImageError, FormatError: As `older_content`.
    """
    if transfer[:1] != b"\1":
        return None
    content = older_content(transfer, what)
    return None if content is transfer else content


def is_in_the_clear(content: bytes) -> bool:
    """Say whether this begins as libtpms's data do."""
    return content[2:6] in TPM_2_MAGIC or content[:2] == _TPM_12
