"""`blobstore vtpm`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from blobstore import StateFormat, owner, vtpm
from blobstore.cli import service
from blobstore.cli import swtpm_options as options
from blobstore.cli.access import PATH, Access, access_options
from blobstore.cli.state_key import KeyType, NamedKey, state_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from blobstore import Store

_STATE_NAMES: Final = {
    vtpm.Slot.PERMANENT: "permall",
    vtpm.Slot.VOLATILE: "volatile",
    vtpm.Slot.SAVED: "savestate",
}


class _Parsed(click.ParamType[Any]):
    """An option that one of the parsers of `blobstore.cli.swtpm_options` understands."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True, kw_only=True)
class _Service:
    """How the TPM is run."""

    data: vtpm.Channel | None
    ctrl: vtpm.Channel | None
    pid: Path | int | None
    terminate: bool
    daemon: bool
    flags: options.Flags


@click.command("vtpm")
@click.argument("image", type=PATH, required=False)
@click.option(
    "--server",
    "data",
    type=_Parsed("server", options.parse_server),
    metavar="type=unixio,path=PATH|type=tcp,port=PORT",
    help="Where TPM commands are taken: also bindaddr=, ifname=, mode=, uid=, gid=, disconnect, "
    "or fd= for a connection. Without it the connection comes through --ctrl.",
)
@click.option(
    "--ctrl",
    type=_Parsed("ctrl", options.parse_control),
    metavar="type=unixio,path=PATH|type=tcp,port=PORT",
    help="The control channel, as for --server; fd= listens, clientfd= is a connection, "
    "terminate ends the TPM with it.",
)
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="As --server, one command each.")
@click.option("-f", "--fd", type=click.IntRange(min=0), help="Take commands from this connection.")
@click.option("--tpm2", "chosen", flag_value=str(vtpm.TpmVersion.TPM_2), help="A TPM 2.0.")
@click.option(
    "--tpm1.2",
    "--tpm12",
    "chosen",
    flag_value=str(vtpm.TpmVersion.TPM_12),
    help="A TPM 1.2.  [default: the one in IMAGE, a TPM 2.0 if there is none]",
)
@click.option("--name", metavar="NAME", help="First part of the sections' names.  [default: tpm]")
@click.option(
    "--flags",
    type=_Parsed("flags", options.parse_flags),
    default=options.Flags(),
    metavar="FLAG,...",
    help="not-need-init; startup-clear, startup-state, startup-deactivated or startup-none; "
    "disable-auto-shutdown.",
)
@click.option(
    "--locality",
    type=_Parsed("locality", options.parse_locality),
    default=frozenset(),
    metavar="WORD,...",
    help="reject-locality-4, allow-set-locality.",
)
@click.option(
    "--migration",
    type=_Parsed("migration", options.parse_migration),
    default=frozenset(),
    metavar="WORD,...",
    help="release-lock-outgoing: give IMAGE up once the state was fetched; incoming: wait for "
    "state, and for IMAGE.",
)
@click.option(
    "--migration-key",
    type=KeyType(),
    metavar="SPEC",
    help="Encrypt state on its way, with a key as for --swtpm-key of import.",
)
@click.option("-t", "--terminate", is_flag=True, help="End when the data connection ends.")
@click.option("-d", "--daemon", is_flag=True, help="Go into the background when all is ready.")
@click.option(
    "--pid",
    type=_Parsed("pid", options.parse_pid),
    metavar="file=FILE|fd=N",
    help="Write the process id there.",
)
@click.option(
    "--log",
    type=_Parsed("log", options.parse_log),
    metavar="file=FILE|fd=N[,level=N][,prefix=TEXT][,truncate]",
    help="Log there; - is nowhere. Level 2 is what happens, 3 all requests, 5 libtpms, too.",
)
@click.option("-r", "--runas", metavar="USER", help="Become this user.")
@click.option(
    "--seccomp", type=click.Choice(["action=none"]), help="Taken for the sake of scripts."
)
@click.option(
    "--tpmstate", metavar="ANY", help="Taken for the sake of scripts: the state is in IMAGE."
)
@click.option("--print-capabilities", is_flag=True, help="Print what this can, as JSON.")
@click.option("--print-states", is_flag=True, help="Print which states IMAGE has, as JSON.")
@access_options
def command(
    *,
    access: Access,
    image: Path | None,
    name: str | None,
    chosen: str | None,
    locality: set[str],
    migration: set[str],
    migration_key: NamedKey | None,
    log: options.LogOptions | None,
    runas: str | None,
    print_capabilities: bool,
    print_states: bool,
    **run_options: Any,
) -> None:
    """Be a TPM whose state is in IMAGE, for QEMU, tpm2-tools and others.

    It takes swtpm's options and speaks its protocol: put `blobstore vtpm IMAGE`
    where `swtpm socket --tpmstate ...` was. An image that never had a TPM gets a
    new one. Every command is answered once what it changed is durable.
    """
    version = None if chosen is None else vtpm.TpmVersion(chosen)
    if print_capabilities:
        click.echo(json.dumps(vtpm.swtpm_capabilities(version)))
        return
    if image is None:
        raise click.UsageError("Missing argument 'IMAGE'.")
    try:
        StateFormat.SWTPM_DIR.validate_name(name)
        if runas is not None:
            service.become_user(runas)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if log is not None:
        service.set_up_log(log)
    if print_states:
        with access.open(image) as store:
            _print_states(store, name)
        return
    run = _service(**run_options)
    ready = service.fork_into_background() if run.daemon else _do_nothing
    incoming = "incoming" in migration
    with (
        state_key(migration_key) as key,
        access.open(image, read_only=False, released=incoming) as store,
    ):
        behaviour = vtpm.Behaviour(
            reject_locality_4="reject-locality-4" in locality,
            allow_set_locality="allow-set-locality" in locality,
            auto_shutdown=run.flags.auto_shutdown,
            release_outgoing="release-lock-outgoing" in migration,
            incoming=incoming,
            migration_key=key,
        )
        image_owner = owner.Owner(store, image)
        # Where the image changes hands, its entry does, too (V79).
        sharing = owner.Sharing(image_owner)
        nvram = vtpm.StoreNvram(
            store,
            name,
            released=incoming,
            held_changed=lambda held: sharing.start() if held else sharing.stop(),
        )
        tpm = vtpm.Tpm(nvram, version, behaviour)
        image_owner.add(tpm)
        try:
            _serve(tpm, run, sharing.start if nvram.held else _do_nothing, ready)
        finally:
            sharing.stop()


def _service(
    *,
    data: vtpm.Channel | None,
    ctrl: vtpm.Channel | None,
    port: int | None,
    fd: int | None,
    flags: options.Flags,
    seccomp: str | None,
    tpmstate: str | None,
    **rest: Any,
) -> _Service:
    del seccomp, tpmstate
    if (data, port, fd).count(None) < 2:
        raise click.UsageError("--server, --port and --fd exclude each other")
    if port is not None:
        data = vtpm.Channel(port=port, disconnect=True)
    if fd is not None:
        data = vtpm.Channel(connected=fd)
    if data is None and ctrl is None:
        raise click.UsageError("there is neither --server nor --ctrl: nothing could reach the TPM")
    if ctrl is None and flags.needs_init:
        raise click.UsageError(
            "without --ctrl nothing could start the TPM: add --flags not-need-init"
        )
    return _Service(data=data, ctrl=ctrl, flags=flags, **rest)


def _do_nothing() -> None:
    pass


def _serve(
    tpm: vtpm.Tpm, run: _Service, share: Callable[[], None], ready: Callable[[], None]
) -> None:
    try:
        if not run.flags.needs_init:
            try:
                tpm.power_on(run.flags.startup)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
        share()  # first: a client that finds the TPM finds the rest as well
        server = vtpm.Server(tpm, run.data, run.ctrl, terminate=run.terminate)
        pid_file = None
        try:
            if run.pid is not None:
                pid_file = service.PidFile(run.pid)
            ready()
            server.run()
        finally:
            if pid_file is not None:
                pid_file.remove()
            server.close()
    finally:
        tpm.stop()


def _print_states(store: Store, name: str | None) -> None:
    sizes = vtpm.StoreNvram(store, name).sizes()
    states = [{"name": _STATE_NAMES[slot], "size": size} for slot, size in sizes.items()]
    click.echo(json.dumps({"type": "swtpm", "states": states}))
    sys.stdout.flush()
