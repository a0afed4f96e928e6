"""`blobstore serve`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

import blobstore
from blobstore import owner
from blobstore.cli.access import PATH, Access, access_options
from blobstore.cli.tpm_options import NamedTpm, TpmType, with_keys
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
@click.option(
    "--tpm",
    "tpms",
    type=TpmType(),
    multiple=True,
    metavar="ctrl=type=unixio,path=PATH[,...]",
    help="Be a TPM, too, with the options of `blobstore vtpm`: ctrl=, server=, name=, flags=, "
    "locality=, migration-key=, tpm2, tpm1.2. May be given several times.",
)
@access_options
@click.pass_context
def command(
    context: click.Context,
    *,
    access: Access,
    image: Path,
    socket: Path | None,
    nbd: str | None,
    tpms: tuple[NamedTpm, ...],
) -> None:
    """Own IMAGE, and serve its store to others until SIGTERM or Ctrl-C.

    Others are curl and every language (HTTP/1.1 on a Unix socket), Python's
    `blobstore.owner.find_owner`, and the verbs get, put, ls, info, rm, mv and resize, which
    find the socket by themselves. Any process that may connect may read and write.
    """
    quiet = bool(context.parent and context.parent.params["quiet"])
    configure_with(lambda: _configure(quiet=quiet))
    address = None if nbd is None else blobstore.parse_nbd_address(nbd)
    with (
        access.open(image, read_only=False) as store,
        nullcontext()
        if address is None
        else blobstore.NbdServer(address, blobstore.NbdSections(store)) as nbd_server,
        with_keys(tpms) as chosen,
        owner.Tpms(store, chosen) as all_tpms,
    ):
        fronts: list[owner.Front] = [all_tpms]
        if nbd_server is not None:
            fronts.append(nbd_server)
        owner.serve(store, image, socket=socket, fronts=fronts, ready=None if quiet else _say_where)


def _configure(*, quiet: bool) -> None:
    """Log who connects, too (O5)."""
    import logging  # noqa: PLC0415, TID251  only if there is something to say

    logging.basicConfig(
        level=logging.ERROR if quiet else logging.INFO, format="blobstore: %(message)s"
    )


def _say_where(path: Path) -> None:
    click.echo(f"blobstore: serving at {path}", err=True)
