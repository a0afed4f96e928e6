"""Looking for a marked secret: as it is, and in the forms in which it may get out."""

from __future__ import annotations

import base64
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: A passphrase that nothing else contains; half of it would be a leak as well.
MARKER = b"MARKED-mHx4Jt9vQe2LwR7uKc5sTfYa8Gd3Bn"
#: A master key of 32 bytes, likewise.
MASTER = b"MASTER-pZ6kWc1rXo0jVb5yUq4hEs9tN"


def forms(secret: bytes) -> dict[str, bytes]:
    """Return what shows a secret, each half of it by itself."""
    found = {}
    middle = len(secret) // 2
    for half, part in (("first", secret[:middle]), ("second", secret[middle:])):
        text = part.decode("latin-1")
        found[f"{half} half"] = part
        found[f"{half} half reversed"] = part[::-1]
        found[f"{half} half in hex"] = part.hex().encode()
        found[f"{half} half in capital hex"] = part.hex().upper().encode()
        found[f"{half} half in escapes"] = escaped(part)
        found[f"{half} half in UTF-16"] = text.encode("utf-16-le")
        found[f"{half} half in UTF-32"] = text.encode("utf-32-le")
        for shift in range(3):
            # Without the digits that depend on what stands around it.
            encoded = base64.b64encode(bytes(shift) + part)
            first = -(-shift * 8 // 6)
            last = (shift + len(part)) * 8 // 6
            found[f"{half} half in base64 at {shift}"] = encoded[first:last]
    return found


def escaped(data: bytes) -> bytes:
    """Return bytes as strace -xx writes them."""
    return "".join(f"\\x{byte:02x}" for byte in data).encode()


_FORMS = {**forms(MARKER), **{f"master key: {name}": f for name, f in forms(MASTER).items()}}
_ESCAPED = {name: escaped(form) for name, form in _FORMS.items()}


def leaks(text: bytes | str) -> list[str]:
    """Say in which forms a text shows the marked secrets."""
    data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    return [name for name, form in _FORMS.items() if form in data]


def traced_leaks(trace: bytes) -> list[str]:
    """Say so of what strace -xx has written."""
    return [name for name, form in _ESCAPED.items() if form in trace]


def leaking_files(directory: Path, searched: dict[Path, object] | None = None) -> list[str]:
    """Name the files below a directory that show the marked secrets, in name or content.

    Args:
        directory: Where to look.
        searched: What was looked at before, and is passed over until it changes.
    """
    found = []
    for path in directory.rglob("*"):
        status = path.stat()
        state = (status.st_ino, status.st_mtime_ns, status.st_size)
        if searched is not None and searched.get(path) == state:
            continue
        content = path.read_bytes() if path.is_file() else b""
        shown = leaks(str(path)) + leaks(content)
        found += [f"{path}: {form}" for form in shown]
        if searched is not None and not shown:
            searched[path] = state
    return found


def told_by(error: BaseException) -> str:
    """Return all that an exception may tell, with the local variables of each frame."""
    return "\n".join(_told_by(error))


def _told_by(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield from (str(error), repr(error), repr(vars(error)), repr(error.args))
        yield from traceback.TracebackException(
            type(error), error, error.__traceback__, capture_locals=True
        ).format()
        yield from _told_by(error.__cause__)
        if isinstance(error, UnicodeError):
            yield repr(getattr(error, "object", ""))
        error = error.__context__
