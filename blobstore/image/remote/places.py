"""Where a device can be that is not a file: exports of NBD servers, images of Ceph (P1 to P3).

A place is named by a text, as a path is: ``nbd://HOST/NAME`` and its kin are URIs of the NBD
project, ``rbd:POOL/IMAGE`` is what QEMU takes.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from formats.errors import ArgumentError

if TYPE_CHECKING:
    from blobstore.image.remote.nbd_connection import NbdAddress
    from blobstore.image.remote.nbd_disk import NbdDisk
    from blobstore.image.remote.rbd_disk import RbdAddress, RbdDisk

_NBD: Final = re.compile(r"nbds?(\+unix)?://", re.IGNORECASE)
_RBD: Final = "rbd:"
_PORT: Final = 10809
_TLS_OPTIONS: Final = ("tls-certificates", "tls-hostname")
_RBD_OPTIONS: Final = ("conf", "id")


def open_remote(
    place: str, *, read_only: bool = True, lock: bool = True, lock_file: Path | None = None
) -> NbdDisk | RbdDisk:
    """Open a device that is not a file of this machine.

    A store on it is opened with `Store.on_device`, a LUKS volume with `luks.open`; the device
    stays the caller's to close.

    Args:
        place: ``nbd+unix:///EXPORT?socket=PATH``, ``nbd://HOST[:PORT]/EXPORT``, ``nbds://`` with
            TLS, or ``rbd:POOL/IMAGE[@SNAPSHOT][:conf=FILE][:id=USER]``.
        read_only: Permit no writing.
        lock: Lock an image of RBD that is to be written; there is no lock in NBD (P5).
        lock_file: Lock this file instead, for an export of NBD that is to be written.

    Raises:
        ArgumentError: It is not such a place.
        DeviceBusyError: Another process has locked it.
        ReadOnlyError: It is to be written, and takes no writes.
        UnsupportedError: It is to be written, and cannot make that durable; or librbd is not
            installed.
        DeviceError: No server answers, or it does not have this device.
        FormatError: What answers breaks the protocol.
    """
    address = address_of(place)
    from blobstore.image.remote.rbd_disk import RbdAddress, RbdDisk  # noqa: PLC0415  few need it

    if isinstance(address, RbdAddress):
        return RbdDisk(address, read_only=read_only, lock=lock)
    from blobstore.image.remote.nbd_disk import NbdDisk  # noqa: PLC0415  likewise

    return NbdDisk(address, read_only=read_only, lock=lock, lock_file=lock_file)


def address_of(place: str) -> NbdAddress | RbdAddress:
    """Return what a text names.

    Raises:
        ArgumentError: It does not name a place.
    """
    if place.startswith(_RBD):
        return _rbd(place)
    if _NBD.match(place):
        return _nbd(place)
    raise ArgumentError(f"{place!r} is not a place: nbd://, nbds://, nbd+unix:// or rbd: [P1]")


def _nbd(text: str) -> NbdAddress:
    from blobstore.image.remote.nbd_connection import NbdAddress  # noqa: PLC0415  few images are remote

    try:
        uri = urlsplit(text)
        port = uri.port or _PORT
    except ValueError as error:
        raise ArgumentError(f"{text!r} is not a place: {error} [P2]") from error
    encrypted = uri.scheme.startswith("nbds")
    options = _options(text, uri.query, {"socket", *(_TLS_OPTIONS if encrypted else ())})
    name = unquote(uri.path.removeprefix("/"))
    if "\0" in name or uri.fragment:
        raise ArgumentError(f"{text!r} is not a place [P2]")
    if uri.scheme.endswith("+unix"):
        if uri.netloc or not options.get("socket"):
            raise ArgumentError(
                f"{text!r} does not say where the server is: nbd+unix:///NAME?socket=PATH [P2]"
            )
        address = NbdAddress(socket=Path(options["socket"]).absolute(), export=name)
    else:
        if not uri.hostname or "socket" in options:
            raise ArgumentError(
                f"{text!r} does not say where the server is: nbd://HOST[:PORT]/NAME [P2]"
            )
        address = NbdAddress(socket=(uri.hostname, port), export=name)
    if encrypted:
        from blobstore.image.remote.tls import ClientTls  # noqa: PLC0415  few places are encrypted

        directory, hostname = map(options.get, _TLS_OPTIONS)
        if not (hostname or uri.hostname):
            raise ArgumentError(
                f"{text!r} does not say whom to expect at its socket: tls-hostname= does [P18]"
            )
        tls = ClientTls(
            certificates=None if directory is None else Path(directory).absolute(),
            hostname=hostname,
        )
        address = replace(address, tls=tls)
    return address


def _rbd(text: str) -> RbdAddress:
    from blobstore.image.remote.rbd_disk import RbdAddress  # noqa: PLC0415  few images are remote

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
