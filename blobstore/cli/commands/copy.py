"""`blobstore copy`."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import click

import blobstore
from blobstore import owner
from blobstore.cli.access import IMAGE, PATH
from blobstore.cli.output import progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from blobstore import Place

#: Seconds between two lines of progress.
_PAUSE: Final = 0.25


@click.command("copy")
@click.argument("source", type=IMAGE)
@click.argument("destination", type=IMAGE)
@click.option(
    "--hand-over",
    is_flag=True,
    help="Let DESTINATION be the image from now on, and SOURCE none.",
)
@click.option(
    "--socket", type=PATH, metavar="PATH", help="Of SOURCE's owner.  [default: that of SOURCE]"
)
@click.option("--force", is_flag=True, help="Destroy what is at DESTINATION.")
@click.option("--json", "as_json", is_flag=True, help="Print progress and result as lines of JSON.")
def command(
    *,
    source: Place,
    destination: Place,
    hand_over: bool,
    socket: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Copy the image SOURCE as it lies to DESTINATION, also while it is in use.

    Both are places: files, block devices, exports of NBD, images of Ceph. No passphrase is needed.
    What is interrupted goes on when it is called again; until the end no program opens
    DESTINATION. The copy has the same keys and identities: `clone` makes an independent store,
    and with --hand-over only one of the two can be opened at any moment.
    """
    with ExitStack() as stack:
        client = blobstore.find_owner(source) if socket is None else owner.StoreClient(socket)
        if client is not None:
            stack.enter_context(client)
        advance = _lines() if as_json else stack.enter_context(progress("copying"))
        copied = blobstore.copy(
            source,
            destination,
            owner=client,
            hand_over=hand_over,
            overwrite=force,
            progress=advance,
        )
    digest = None if copied.digest is None else str(copied.digest)
    if as_json:
        click.echo(json.dumps({**copied._asdict(), "digest": digest}))
    elif digest is not None:
        click.echo(digest)


def _lines() -> Callable[[int, int], None]:
    last = 0.0

    def advance(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PAUSE or done == total:
            last = now
            click.echo(json.dumps({"done": done, "total": total}))

    return advance
