"""`blobstore owner`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from blobstore import owner
from blobstore.cli.access import IMAGE, PATH
from blobstore.cli.types import DigestType
from formats.errors import DeviceError

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import Place, StateDigest

_IMAGE = click.argument("image", type=IMAGE)
_SOCKET = click.option(
    "--socket", type=PATH, metavar="PATH", help="The owner's.  [default: that of IMAGE]"
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("owner")
def command() -> None:
    """Ask the process that owns an image about itself."""


@command.command("show")
@_IMAGE
@_SOCKET
@_JSON
def show(image: Place, socket: Path | None, *, as_json: bool) -> None:
    """Print who owns IMAGE, and whether it has released it."""
    with _owner(image, socket) as client:
        state = client.state()
    if as_json:
        click.echo(json.dumps({"process": state.process, "released": state.released}))
        return
    click.echo(f"process   {state.process}")
    click.echo(f"released  {'yes' if state.released else 'no'}")


@command.command("release")
@_IMAGE
@_SOCKET
def release(image: Place, socket: Path | None) -> None:
    """Have the owner of IMAGE let another process take it, and print its digest.

    The owner goes on: it answers what it can read, and its devices stay connected. It takes
    IMAGE back with take-over.
    """
    with _owner(image, socket) as client:
        click.echo(str(client.release()))


@command.command("take-over")
@_IMAGE
@_SOCKET
@click.option(
    "--expect-digest",
    type=DigestType(),
    metavar="DIGEST",
    help="Refuse an image in any other state than this one, as release printed it.",
)
@click.option(
    "--at-least-generation",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Refuse an image that has not reached this generation.",
)
def take_over(
    image: Place,
    socket: Path | None,
    *,
    expect_digest: StateDigest | None,
    at_least_generation: int,
) -> None:
    """Have the process that waits for IMAGE, or has released it, take it."""
    with _owner(image, socket) as client:
        taken = client.take_over(
            expect_digest=expect_digest, at_least_generation=at_least_generation
        )
        click.echo(str(taken))


def _owner(image: Place, socket: Path | None) -> owner.StoreClient:
    if socket is not None:
        return owner.StoreClient(socket)
    found = owner.find_owner(image)
    if found is None:
        raise DeviceError(f"{image} has no owner", hint="start blobstore serve, or name --socket")
    return found
