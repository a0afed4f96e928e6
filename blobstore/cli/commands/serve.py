"""`blobstore serve`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

import blobstore
from blobstore import owner
from blobstore.cli.access import PATH, Access, access_options
from formats.logs import configure_with

if TYPE_CHECKING:
    from pathlib import Path


@click.command("serve")
@click.argument("image", type=PATH)
@click.option(
    "--socket",
    type=PATH,
    metavar="PATH",
    help="Listen here.  [default: in the runtime directory]",
)
@click.option(
    "--nbd",
    metavar="ADDRESS",
    help="Export the sections by NBD, too: a path, or HOST:PORT at a loopback address.",
)
@access_options
@click.pass_context
def command(
    context: click.Context, *, access: Access, image: Path, socket: Path | None, nbd: str | None
) -> None:
    """Own IMAGE, and serve its store to others until SIGTERM or Ctrl-C.

    Others are curl and every language (HTTP/1.1 on a Unix socket), Python's `blobstore.open`,
    and nearly all other verbs, which find the socket by themselves. Any process that may
    connect may read and write.
    """
    quiet = bool(context.parent and context.parent.params["quiet"])
    configure_with(lambda: _configure(quiet=quiet))
    address = None if nbd is None else blobstore.parse_nbd_address(nbd)
    with (
        access.open(image, read_only=False) as store,
        nullcontext()
        if address is None
        else blobstore.NbdServer(address, blobstore.NbdSections(store)) as server,
    ):
        fronts = [] if server is None else [server]
        ready = None if quiet else _say_where
        owner.serve(store, image, socket=socket, fronts=fronts, ready=ready)


def _configure(*, quiet: bool) -> None:
    """Log who connects, too (O5)."""
    import logging  # noqa: PLC0415, TID251  only if there is something to say

    logging.basicConfig(
        level=logging.ERROR if quiet else logging.INFO, format="blobstore: %(message)s"
    )


def _say_where(path: Path) -> None:
    click.echo(f"blobstore: serving at {path}", err=True)
