"""`blobstore mount`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blobstore import owner
from blobstore.cli import service
from blobstore.cli.access import IMAGE, PATH, Access, access_options
from blobstore.cli.mount_options import mount_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from blobstore import Place


@click.command("mount")
@click.argument("image", type=IMAGE)
@click.argument("directory", type=click.Path())
@mount_options
@click.option("--read-only", "-r", is_flag=True, help="Take no changes; others may read IMAGE.")
@click.option(
    "--socket",
    type=PATH,
    metavar="PATH",
    help="Serve the store here.  [default: in the runtime directory]",
)
@service.options
@access_options
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    access: Access,
    image: Place,
    directory: str,
    how: dict[str, Any],
    read_only: bool,
    socket: Path | None,
    run: service.RunOptions,
) -> None:
    """Show the sections of IMAGE as files in the empty directory DIRECTORY.

    A file is put as a whole when a program calls fsync, renames it or closes it; what a
    crash leaves is what was put last. It ends at SIGTERM, Ctrl-C or `umount DIRECTORY`, and
    owns IMAGE until then, as `blobstore serve` does: other verbs go through it.
    """
    front = owner.MountFront(directory=directory, **how, read_only=read_only, terminate=True)
    quiet = bool(context.parent and context.parent.params["quiet"])
    service.log_to(run, quiet=quiet)
    in_background = run.begin()
    ready = _ready(directory, in_background, quiet=quiet)
    if read_only or access.snapshot is not None:
        if socket is not None:
            raise click.UsageError("what is only read has no owner, so no --socket")
        with access.open(image) as store, run.pid_file():
            owner.show(store, image, front, ready=ready)
        return
    config = owner.ServeConfig(mount=(front,)).with_options(socket=socket)
    with access.open(image, read_only=False) as store, run.pid_file():
        owner.serve(store, image, config, ready=lambda _: ready())


def _ready(directory: str, in_background: Callable[[], None], *, quiet: bool) -> Callable[[], None]:
    def say_where() -> None:
        if not quiet:
            click.echo(f"blobstore: mounted at {directory}", err=True)
        in_background()

    return say_where
