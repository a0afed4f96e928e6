"""`blobstore vtpm`."""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from blobstore import StateFormat, owner, vtpm
from blobstore.cli import service
from blobstore.cli.access import IMAGE, Access, access_options
from blobstore.cli.state_key import KeyType, state_key
from blobstore.cli.types import ParsedType
from blobstore.vtpm import swtpm_options as options

if TYPE_CHECKING:
    from collections.abc import Callable

    import blobstore
    from blobstore import Place
    from blobstore.owner import AnyStore

_STATE_NAMES: Final = {
    vtpm.Slot.PERMANENT: "permall",
    vtpm.Slot.VOLATILE: "volatile",
    vtpm.Slot.SAVED: "savestate",
}


@dataclass(frozen=True, kw_only=True)
class _Service:
    """How the TPM is run."""

    data: vtpm.Channel | None
    ctrl: vtpm.Channel | None
    terminate: bool
    flags: options.Flags


@click.command("vtpm")
@click.argument("image", type=IMAGE, required=False)
@click.option(
    "--server",
    "data",
    type=ParsedType("server", options.parse_server),
    metavar="type=unixio,path=PATH|type=tcp,port=PORT",
    help="Where TPM commands are taken: also bindaddr=, ifname=, mode=, uid=, gid=, disconnect, "
    "or fd= for a connection. Without it the connection comes through --ctrl.",
)
@click.option(
    "--ctrl",
    type=ParsedType("ctrl", options.parse_control),
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
    type=ParsedType("flags", options.parse_flags),
    default=options.Flags(),
    metavar="FLAG,...",
    help="not-need-init; startup-clear, startup-state, startup-deactivated or startup-none; "
    "disable-auto-shutdown.",
)
@click.option(
    "--locality",
    type=ParsedType("locality", options.parse_locality),
    default=frozenset(),
    metavar="WORD,...",
    help="reject-locality-4, allow-set-locality.",
)
@click.option(
    "--migration",
    type=ParsedType("migration", options.parse_migration),
    default=frozenset(),
    metavar="WORD,...",
    help="release-lock-outgoing: give IMAGE up once the state was fetched; incoming: wait for "
    "state, and for IMAGE.",
)
@click.option(
    "--migration-key",
    type=KeyType(removable=True),
    metavar="SPEC",
    help="Encrypt state on its way, with a key as for --swtpm-key of import; with remove the "
    "file is removed when it was read.",
)
@click.option("-t", "--terminate", is_flag=True, help="End when the data connection ends.")
@service.options
@click.option("-r", "--runas", metavar="USER", help="Become this user.")
@click.option(
    "--seccomp", type=click.Choice(["action=none"]), help="Taken for the sake of scripts."
)
@click.option(
    "--tpmstate",
    type=ParsedType("tpmstate", options.parse_state_place),
    metavar="dir=DIR|backend-uri=URI[,...]",
    help="Taken for the sake of scripts: the state is in IMAGE, locked, flushed and with the "
    "state before it.",
)
@click.option(
    "-R",
    "--chroot",
    "root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Have DIR as the root directory, before anything is opened: all other paths are in it.",
)
@click.option(
    "--profile",
    type=ParsedType("profile", options.parse_profile),
    metavar="name=NAME|profile=JSON|file=FILE|fd=N",
    help="Of a TPM 2.0 that is made now, with libtpms 0.10 or newer.",
)
@click.option("--print-profiles", is_flag=True, help="Print libtpms's profiles, as JSON.")
@click.option(
    "--pcap",
    type=ParsedType("pcap", options.parse_capture),
    metavar="file=FILE|fd=N[,truncate][,mode=OCTAL][,checksums]",
    help="Record commands and responses for Wireshark, with all secrets in them.",
)
@click.option("--print-capabilities", is_flag=True, help="Print what this can, as JSON.")
@click.option(
    "--print-info",
    type=ParsedType("info", options.parse_info),
    metavar="FLAGS",
    help="Print what libtpms says of itself and of the TPM in IMAGE, as JSON; FLAGS are those of "
    "TPMLIB_GetInfo.",
)
@click.option("--print-states", is_flag=True, help="Print which states IMAGE has, as JSON.")
@access_options
def command(
    *,
    access: Access,
    image: Place | None,
    name: str | None,
    chosen: str | None,
    locality: set[str],
    migration: set[str],
    migration_key: blobstore.StateKeySource | None,
    run: service.RunOptions,
    runas: str | None,
    root: Path | None,
    profile: vtpm.ProfileSource | None,
    pcap: vtpm.CaptureOptions | None,
    print_capabilities: bool,
    print_profiles: bool,
    print_info: int | None,
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
        click.echo(vtpm.swtpm_text(vtpm.swtpm_capabilities(version)))
        return
    if print_profiles:
        click.echo(vtpm.libtpms_profiles())
        return
    if print_info is not None and image is None:
        click.echo(vtpm.libtpms_info(version, print_info))
        return
    if image is None:
        raise click.UsageError("Missing argument 'IMAGE'.")
    try:
        StateFormat.SWTPM_DIR.validate_name(name)
        service.confine(root, runas)
        chosen_profile = None if profile is None else profile.read()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if run.log is not None:
        service.set_up_log(run.log)
    if print_states:
        with access.open_shared(image) as store:
            _print_states(store, name)
        return
    if print_info is not None:
        with access.open_shared(image) as store:
            click.echo(vtpm.libtpms_info(version, print_info, vtpm.StoreNvram(store, name)))
        return
    served = _service(**run_options)
    ready = run.begin()
    incoming = "incoming" in migration
    with (
        state_key(migration_key) as key,
        access.open(image, read_only=False, released=incoming) as store,
        nullcontext() if pcap is None else closing(pcap.open()) as capture,
    ):
        behaviour = vtpm.Behaviour(
            reject_locality_4="reject-locality-4" in locality,
            allow_set_locality="allow-set-locality" in locality,
            auto_shutdown=served.flags.auto_shutdown,
            release_outgoing="release-lock-outgoing" in migration,
            incoming=incoming,
            migration_key=key,
            profile=chosen_profile,
            capture=capture,
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
        try:
            tpm = vtpm.Tpm(nvram, version, behaviour)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        image_owner.add(owner.OnlyTpm(tpm))
        try:
            _serve(tpm, served, run, sharing.start if nvram.held else _do_nothing, ready)
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
    tpmstate: object,
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
    tpm: vtpm.Tpm,
    served: _Service,
    run: service.RunOptions,
    share: Callable[[], None],
    ready: Callable[[], None],
) -> None:
    try:
        if not served.flags.needs_init:
            try:
                tpm.power_on(served.flags.startup)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
        share()  # first: a client that finds the TPM finds the rest as well
        server = vtpm.Server(tpm, served.data, served.ctrl, terminate=served.terminate)
        try:
            with run.pid_file():
                ready()
                server.run()
        finally:
            server.close()
    finally:
        tpm.stop()


def _print_states(store: AnyStore, name: str | None) -> None:
    sizes = vtpm.StoreNvram(store, name).sizes()
    states = [{"name": _STATE_NAMES[slot], "size": size} for slot, size in sizes.items()]
    click.echo(vtpm.swtpm_text({"type": "swtpm", "states": states}))
    sys.stdout.flush()
