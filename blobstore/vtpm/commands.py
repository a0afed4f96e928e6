"""The data channel: commands and responses of a TPM as bytes (V20 to V26).

Bytes to values and back; nothing is executed or sent here.

Source: TCG, *TPM Main* part 3 and *TPM Library* part 3 (headers, codes); Linux's
``vtpm_proxy.h`` for setting the locality; the manual of swtpm for the command header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from blobstore.vtpm.libtpms import Result
from formats.state.swtpm import TpmVersion

#: Bytes of the header of a command or response: tag, size of the whole, code.
HEADER_SIZE: Final = 10
#: Bytes in front of a command that says its locality itself (V22).
PREFIX_SIZE: Final = 9

_HEADER: Final = struct.Struct(">HII")
_PREFIX: Final = struct.Struct(">IBI")  # code, locality, size of what follows
_U32: Final = struct.Struct(">I")

_SEND_COMMAND: Final = 8

_TAG_12, _RESPONSE_TAG_12 = 0x00C1, 0x00C4
_TAG_2 = 0x8001

_STARTUP_12, _STARTUP_2, _SHUTDOWN_2 = 0x99, 0x144, 0x145
_SET_LOCALITY: Final = 0x20001000

_RC_FAILURE, _RC_LOCALITY = 0x101, 0x107

#: The highest locality there is.
MAX_LOCALITY: Final = 4


class Startup(StrEnum):
    """What a TPM is told when it starts, as in swtpm's ``--flags``."""

    CLEAR = "startup-clear"
    STATE = "startup-state"
    DEACTIVATED = "startup-deactivated"
    NONE = "startup-none"


_STARTUP_TYPES: Final = {
    (TpmVersion.TPM_12, Startup.CLEAR): 1,
    (TpmVersion.TPM_12, Startup.STATE): 2,
    (TpmVersion.TPM_12, Startup.DEACTIVATED): 3,
    (TpmVersion.TPM_2, Startup.CLEAR): 0,
    (TpmVersion.TPM_2, Startup.STATE): 1,
}


@dataclass(frozen=True, slots=True)
class Command:
    """One command as it came.

    Attributes:
        body: What the TPM gets, header included.
        locality: What the prefix says of it; None without a prefix.
        too_long: It is the header of one that is longer than any can be (V21).
    """

    body: bytes
    locality: int | None = None
    too_long: bool = False

    @property
    def code(self) -> int | None:
        """The ordinal or command code; None if it is too short to have one."""
        if len(self.body) < HEADER_SIZE:
            return None
        return int(_HEADER.unpack_from(self.body)[2])

    @property
    def wanted_locality(self) -> int | None:
        """The locality that this command is to set (V24); None if it is another command."""
        if self.code != _SET_LOCALITY:
            return None
        # One without its byte names no locality that there is.
        return self.body[HEADER_SIZE] if len(self.body) > HEADER_SIZE else MAX_LOCALITY + 1


def split_command(
    received: bytes | bytearray, version: TpmVersion, most: int
) -> tuple[Command, int] | None:
    """Take the first command off what was received (V20 to V22).

    Args:
        received: From the beginning of a command.
        version: Of the TPM; only a TPM 2.0 takes prefixes.
        most: Bytes of the largest command.

    Returns:
        It, and how many bytes it took; None if more must be received.
    """
    start, locality = 0, None
    if version is TpmVersion.TPM_2 and received[:4] == _U32.pack(_SEND_COMMAND):
        if len(received) < PREFIX_SIZE:
            return None
        start, locality = PREFIX_SIZE, received[4]
    if len(received) < start + HEADER_SIZE:
        return None
    # What claims to be less than a header is one, and libtpms says what is wrong with it.
    size = max(_HEADER.unpack_from(received, start)[1], HEADER_SIZE)
    too_long = size > most
    if too_long:
        size = HEADER_SIZE
    if len(received) < start + size:
        return None
    return Command(bytes(received[start : start + size]), locality, too_long), start + size


def encode_response(response: bytes, command: Command) -> bytes:
    """Return what is sent for a response: framed as its command was (V22)."""
    if command.locality is None:
        return response
    return _U32.pack(len(response)) + response + _U32.pack(0)


def startup_command(version: TpmVersion, startup: Startup) -> bytes | None:
    """Return the command that starts a TPM, or None for `Startup.NONE`.

    Raises:
        ValueError: This version has no such startup.
    """
    if startup is Startup.NONE:
        return None
    kind = _STARTUP_TYPES.get((version, startup))
    if kind is None:
        raise ValueError(f"a TPM {version} has no {startup}")
    tag, code = (_TAG_2, _STARTUP_2) if version is TpmVersion.TPM_2 else (_TAG_12, _STARTUP_12)
    return _HEADER.pack(tag, HEADER_SIZE + 2, code) + kind.to_bytes(2, "big")


def shutdown_command() -> bytes:
    """Return TPM2_Shutdown(CLEAR)."""
    return _HEADER.pack(_TAG_2, HEADER_SIZE + 2, _SHUTDOWN_2) + bytes(2)


def is_shutdown(command: Command) -> bool:
    """Say whether a command is TPM2_Shutdown."""
    return command.code == _SHUTDOWN_2


def response_code(response: bytes) -> int | None:
    """Return the code of a response; None if it is too short to have one."""
    return int(_HEADER.unpack_from(response)[2]) if len(response) >= HEADER_SIZE else None


def success(version: TpmVersion) -> bytes:
    """Return the shortest response of a command that succeeded."""
    return _response(version, 0, 0)


def failure(version: TpmVersion) -> bytes:
    """Return what a TPM answers that does not run: a fatal error (V23)."""
    return _response(version, Result.FAIL, _RC_FAILURE)


def wrong_locality(version: TpmVersion) -> bytes:
    """Return the response to a locality that may not be set (V24)."""
    return _response(version, Result.BAD_LOCALITY, _RC_LOCALITY)


def _response(version: TpmVersion, code_12: int, code_2: int) -> bytes:
    if version is TpmVersion.TPM_2:
        return _HEADER.pack(_TAG_2, HEADER_SIZE, code_2)
    return _HEADER.pack(_RESPONSE_TAG_12, HEADER_SIZE, code_12)
