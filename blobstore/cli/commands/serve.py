"""`blobstore serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import blobstore
from blobstore import owner
from blobstore.cli import service
from blobstore.cli.access import IMAGE, PATH, Access, access_options
from blobstore.cli.mount_options import mounts_options
from blobstore.cli.nbd_options import nbd_options
from blobstore.cli.tpm_options import TpmType
from blobstore.cli.types import ParsedType, schema_option
from blobstore.vtpm import swtpm_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from blobstore import Place


@click.command("serve")
@click.argument("image", type=IMAGE, required=False)
@click.option(
    "--config", type=PATH, metavar="FILE", help="Serve what this file says, in TOML, too."
)
@click.option(
    "--socket",
    type=PATH,
    metavar="PATH",
    help="Listen here.  [default: in the runtime directory]",
)
@click.option(
    "--socket-mode",
    type=ParsedType("mode", swtpm_options.parse_mode),
    metavar="OCTAL",
    help="Mode of this socket, and of those of --nbd.  [default: 0600]",
)
@click.option("--socket-group", metavar="GROUP", help="Their group.")
@nbd_options
@click.option(
    "--tpm",
    type=TpmType(),
    multiple=True,
    metavar="ctrl=type=unixio,path=PATH[,...]",
    help="Be a TPM, too, with the options of `blobstore vtpm`: ctrl=, server=, name=, flags=, "
    "locality=, migration-key=, tpm2, tpm1.2. May be given several times.",
)
@mounts_options
@click.option("--check-config", is_flag=True, help="Say whether all this can be served, and end.")
@schema_option(owner.serve_schema, "configurations")
@click.option("--replace", is_flag=True, help="Replace the owner of IMAGE, without a gap.")
@click.option(
    "--incoming",
    type=click.Choice(["told", "free"]),
    help="Leave IMAGE to the process that has it, until told to take it over, or until it is free.",
)
@click.option(
    "--standby",
    is_flag=True,
    help="Wait until no other process has IMAGE, because it ended or died; then serve it.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Serve IMAGE though another host seems to have it, which is shut out if that is possible.",
)
@click.option(
    "--unfenced",
    is_flag=True,
    help="With these two: no other host can write to IMAGE, though nothing here makes sure.",
)
@click.option(
    "--resume", is_flag=True, help="Continue a re-encryption of IMAGE that was interrupted."
)
@service.options
@access_options
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    access: Access,
    image: Place | None,
    run: service.RunOptions,
    check_config: bool,
    replace: bool,
    incoming: str | None,
    standby: bool,
    take_over: bool,
    unfenced: bool,
    resume: bool,
    **said: Any,
) -> None:
    """Own IMAGE, and serve its store to others until SIGTERM or Ctrl-C.

    Others are curl and every language (HTTP/1.1 on a Unix socket), Python's `blobstore.open`,
    and nearly all other verbs, which find the socket by themselves. Any process that may
    connect may read and write. SIGHUP reads the file of --config again.
    """
    config = _config(**said)
    image = _image(image, config)
    if check_config:
        return
    begins = _beginning(replace=replace, incoming=incoming, standby=standby, take_over=take_over)
    if standby or take_over:
        owner.require_fenced(image, waits=standby, consent=unfenced)
    elif unfenced:
        raise click.UsageError("--unfenced is for --standby and --take-over")
    if resume and begins is not owner.Beginning.OPENED:
        raise click.UsageError("--resume is for an image that no other process has")
    quiet = bool(context.parent and context.parent.params["quiet"])
    service.log_to(run, quiet=quiet)
    in_background = _once(run.begin())
    with (
        access.open(
            image,
            read_only=False,
            released=begins is not owner.Beginning.OPENED,
            resume=resume,
        ) as store,
        run.pid_file(),
    ):
        owner.serve(
            store,
            image,
            config,
            begins=begins,
            reread=None if said["config"] is None else lambda: _config(**said),
            waiting=_waits(in_background, image, quiet=quiet),
            ready=_ready(in_background, quiet=quiet),
        )


def _config(
    *,
    config: Path | None,
    socket: Path | None,
    socket_mode: int | None,
    socket_group: str | None,
    nbd: tuple[owner.NbdFront, ...],
    tpm: tuple[owner.TpmFront, ...],
    mount: tuple[owner.MountFront, ...],
) -> owner.ServeConfig:
    """Return what the file says, with what options say in its place."""
    found = owner.ServeConfig() if config is None else owner.load_serve_config(config)
    return found.with_options(
        socket=socket, mode=socket_mode, group=socket_group, nbd=nbd, tpm=tpm, mount=mount
    )


def _image(image: Place | None, config: owner.ServeConfig) -> Place:
    if config.image is not None:
        if image is not None and not blobstore.is_same_file(image, config.image):
            raise click.UsageError(f"the configuration is for {config.image}, not for {image}")
        return blobstore.place_of(config.image)
    if image is None:
        raise click.UsageError("Missing argument 'IMAGE'.")
    return image


def _beginning(
    *, replace: bool, incoming: str | None, standby: bool, take_over: bool
) -> owner.Beginning:
    ways = {
        "--replace": owner.Beginning.REPLACING if replace else None,
        "--incoming": None if incoming is None else owner.Beginning(incoming),
        "--standby": owner.Beginning.STANDING_BY if standby else None,
        "--take-over": owner.Beginning.TAKING if take_over else None,
    }
    said = [name for name, how in ways.items() if how is not None]
    if len(said) > 1:
        raise click.UsageError(f"{' and '.join(said)} exclude each other")
    return next(filter(None, ways.values()), owner.Beginning.OPENED)


def _once(in_background: Callable[[], None]) -> Callable[[], None]:
    """Return what does it at the first call only: a standby is ready before it serves."""
    left = [in_background]
    return lambda: left.pop()() if left else None


def _waits(in_background: Callable[[], None], image: Place, *, quiet: bool) -> Callable[[], None]:
    def say_so() -> None:
        if not quiet:
            click.echo(f"blobstore: standing by for {image}", err=True)
        in_background()

    return say_so


def _ready(in_background: Callable[[], None], *, quiet: bool) -> Callable[[Path], None]:
    def say_where(path: Path) -> None:
        if not quiet:
            click.echo(f"blobstore: serving at {path}", err=True)
        in_background()

    return say_where
