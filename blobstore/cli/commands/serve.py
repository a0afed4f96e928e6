"""`blobstore serve`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from blobstore import owner
from blobstore.cli.access import PATH, Access, access_options
from blobstore.cli.nbd_options import nbd_options
from formats.logs import configure_with

if TYPE_CHECKING:
    from pathlib import Path

    import blobstore


@click.command("serve")
@click.argument("image", type=PATH)
@click.option(
    "--socket",
    type=PATH,
    metavar="PATH",
    help="Listen here.  [default: in the runtime directory]",
)
@nbd_options
@access_options
@click.pass_context
def command(
    context: click.Context,
    *,
    access: Access,
    image: Path,
    socket: Path | None,
    nbd: blobstore.NbdSettings | None,
) -> None:
    """Own IMAGE, and serve its store to others until SIGTERM or Ctrl-C.

    Others are curl and every language (HTTP/1.1 on a Unix socket), Python's
    `blobstore.owner.find_owner`, and the verbs get, put, ls, info, rm, mv and resize, which
    find the socket by themselves. Any process that may connect may read and write.
    """
    quiet = bool(context.parent and context.parent.params["quiet"])
    configure_with(lambda: _configure(quiet=quiet))
    with (
        access.open(image, read_only=False) as store,
        nullcontext() if nbd is None else nbd.server(store),
    ):
        owner.serve(store, image, socket=socket, ready=None if quiet else _say_where)


def _configure(*, quiet: bool) -> None:
    """Log who connects, too (O5)."""
    import logging  # noqa: PLC0415, TID251  only if there is something to say

    logging.basicConfig(
        level=logging.ERROR if quiet else logging.INFO, format="blobstore: %(message)s"
    )


def _say_where(path: Path) -> None:
    click.echo(f"blobstore: serving at {path}", err=True)
