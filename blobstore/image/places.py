"""Where an image can lie: paths, exports of NBD servers, images of Ceph (P1 to P9).

A place is named by a text, as a path is: ``nbd://HOST/NAME`` and its kin are URIs of the NBD
project, ``rbd:POOL/IMAGE`` is what QEMU takes. Everything else is a path; a file whose name
begins like a place is named with ``./`` before it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from formats.errors import ArgumentError

if TYPE_CHECKING:
    import os

    from blobstore.image.nbd_connection import NbdAddress
    from blobstore.image.rbd_disk import RbdAddress

    AnyPath = str | os.PathLike[str]
    Place = Path | NbdAddress | RbdAddress

_NBD: Final = re.compile(r"nbds?(\+unix)?://", re.IGNORECASE)
_RBD: Final = "rbd:"
_PORT: Final = 10809
_RBD_OPTIONS: Final = ("conf", "id")


def is_remote(place: AnyPath) -> bool:
    """Say whether a text names a place that is not a path."""
    text = place if isinstance(place, str) else ""
    return text.startswith(_RBD) or _NBD.match(text) is not None


def place_of(place: AnyPath) -> Place:
    """Return what a text names.

    Raises:
        ArgumentError: It begins like a place, and is not one.
    """
    if not isinstance(place, str) or not is_remote(place):
        return Path(place)
    return _rbd(place) if place.startswith(_RBD) else _nbd(place)


def _nbd(text: str) -> NbdAddress:
    from blobstore.image.nbd_connection import NbdAddress  # noqa: PLC0415  few images are remote

    try:
        uri = urlsplit(text)
        port = uri.port or _PORT
    except ValueError as error:
        raise ArgumentError(f"{text!r} is not a place: {error} [P2]") from error
    options = _options(text, uri.query, {"socket"})
    name = unquote(uri.path.removeprefix("/"))
    if "\0" in name or uri.fragment:
        raise ArgumentError(f"{text!r} is not a place [P2]")
    if uri.scheme.endswith("+unix"):
        if uri.netloc or not options.get("socket"):
            raise ArgumentError(
                f"{text!r} does not say where the server is: nbd+unix:///NAME?socket=PATH [P2]"
            )
        address = NbdAddress(socket=Path(options["socket"]), export=name)
    else:
        if not uri.hostname or "socket" in options:
            raise ArgumentError(
                f"{text!r} does not say where the server is: nbd://HOST[:PORT]/NAME [P2]"
            )
        address = NbdAddress(socket=(uri.hostname, port), export=name)
    if uri.scheme.startswith("nbds"):
        import ssl  # noqa: PLC0415  few places are encrypted

        address = replace(address, tls=ssl.create_default_context())
    return address


def _rbd(text: str) -> RbdAddress:
    from blobstore.image.rbd_disk import RbdAddress  # noqa: PLC0415  few images are remote

    # A backslash keeps a colon from being the beginning of an option, as in QEMU.
    where, *options = re.split(r"(?<!\\):", text.removeprefix(_RBD))
    known: dict[str, str] = {}
    for option in options:
        key, _, value = option.replace("\\", "").partition("=")
        if key not in _RBD_OPTIONS or not value:
            raise ArgumentError(f"{text!r} has an option {option!r}: there are conf= and id= [P3]")
        known[key] = value
    pool, _, image = where.replace("\\", "").partition("/")
    image, _, snapshot = image.partition("@")
    if not pool or not image or "/" in image:
        raise ArgumentError(
            f"{text!r} does not name an image: rbd:POOL/IMAGE[@SNAPSHOT][:conf=FILE][:id=USER] [P3]"
        )
    return RbdAddress(
        pool=pool,
        image=image,
        snapshot=snapshot or None,
        conf=known.get("conf"),
        user=known.get("id"),
    )


def _options(text: str, query: str, known: set[str]) -> dict[str, str]:
    try:
        found = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise ArgumentError(f"{text!r} is not a place: {error} [P2]") from error
    unknown = found.keys() - known
    if unknown:
        raise ArgumentError(f"{text!r} has an option {min(unknown)!r} [P2]")
    return found
