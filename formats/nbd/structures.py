"""The structures that messages begin with, for both sides (``spec/nbd.md``, N1 to N18)."""

from __future__ import annotations

import struct
from typing import Final

#: The handshake: the server's greeting, an option, a reply to one, an export's size and flags.
GREETING: Final = struct.Struct(">QQH")
OPTION: Final = struct.Struct(">QII")
OPTION_REPLY: Final = struct.Struct(">QIII")
EXPORT: Final = struct.Struct(">QH")

#: Transmission: a request, a simple reply, the head of a chunk, and what chunks begin with.
REQUEST: Final = struct.Struct(">IHHQQI")
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
CHUNK: Final = struct.Struct(">IHHQI")
OFFSET: Final = struct.Struct(">Q")
FAILURE: Final = struct.Struct(">IH")
EXTENT: Final = struct.Struct(">II")
