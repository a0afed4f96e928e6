"""The options that say what is exported by NBD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from blobstore import owner
from blobstore.cli.types import Group, Option, option, taking

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.cli.types import Command


def _fronts(*, addresses: tuple[str, ...], **said: Any) -> tuple[owner.NbdFront, ...]:
    if not addresses and any(said.values()):
        raise click.UsageError("options about NBD exports need --nbd")
    names = ["nbd", *(f"nbd{number}" for number in range(2, len(addresses) + 1))]
    return tuple(
        owner.NbdFront(listen=address, name=name, **said)
        for address, name in zip(addresses, names, strict=False)
    )


_OPTIONS: Final[dict[str, Option | Group]] = {
    "addresses": option(
        "--nbd",
        multiple=True,
        metavar="ADDRESS",
        help="Export sections by NBD, too: a path, or HOST:PORT; may be repeated.  Only with TLS"
        " that identifies its clients may other machines reach it.",
    ),
    "exports": option(
        "--nbd-export",
        metavar="NAME",
        multiple=True,
        help="Export this section; may be repeated.  [default: all]",
    ),
    "auto": option(
        "--auto",
        is_flag=True,
        help="Export all sections, also those that are registered later.  [default: if neither"
        " --nbd-export nor --nbd-volume is given]",
    ),
    "volume": option(
        "--nbd-volume",
        metavar="NAME",
        help="Export the decrypted payload of the image under this name, for reading.  It changes"
        " under its readers.",
    ),
    "in_place": option(
        "--nbd-in-place",
        metavar="NAME",
        multiple=True,
        help="Write this window in place: faster, but after a crash it is a mixture of old and"
        " new, and nothing authenticates it; may be repeated.",
    ),
    "accept_unverified": option(
        "--nbd-accept-unverified",
        is_flag=True,
        help="Export windows that were being written in place when their owner ended.",
    ),
    "tls": option(
        "--nbd-tls",
        type=click.Path(),
        metavar="DIR",
        help="Require TLS, with ca-cert.pem, server-cert.pem and server-key.pem from DIR.",
    ),
    "tls_any_client": option(
        "--nbd-tls-any-client", is_flag=True, help="Let in clients without a certificate."
    ),
    "tls_psk": option(
        "--nbd-tls-psk",
        type=click.Path(),
        metavar="FILE",
        help="Require TLS, with pre-shared keys from FILE, as psktool makes it.",
    ),
}

#: Adds the options of NBD; the function gets ``nbd``, a front for each address.
nbd_options: Final[Callable[[Command], Command]] = taking("nbd", Group(_fronts, _OPTIONS))
