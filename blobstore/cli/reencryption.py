"""What the verbs `reencrypt`, `encrypt` and `decrypt` have in common."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

import click

import blobstore
import luks
from blobstore.cli.encryption import HASH, SECTOR_SIZE, bytes_of
from blobstore.cli.output import progress
from blobstore.cli.types import IMAGE, Group, SizeType, option, taking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore import Place
    from blobstore.cli.keys import KeySource
    from blobstore.owner import StoreClient

#: Seconds between two lines of ``--json``.
_LINES: Final = 0.25
_RESILIENCE: Final = (
    "checksum", "journal", "none", "datashift", "datashift-journal", "datashift-checksum",
)  # fmt: skip

#: What is shown of how far it is.
_SHOWN: Final = (
    "mode", "position", "size", "resilience",
    "old_cipher", "new_cipher", "old_sector_size", "new_sector_size",
)  # fmt: skip

Mode = Literal["reencrypt", "encrypt", "decrypt"]


class Status(Protocol):
    """What is known of a re-encryption, here or at an owner."""

    @property
    def mode(self) -> str | None: ...
    @property
    def position(self) -> int: ...
    @property
    def size(self) -> int: ...


class Run(NamedTuple):
    """What the options of `run_options` say.

    Attributes:
        header: Place of the detached header.
        resume: Continue what was begun.
        status: Only say how far it is.
        abort: Take back what was begun.
        stop: Have the owner stop.
        init_only: Only begin.
        direct: Do not ask the owner.
        as_json: Print JSON.
        as_bytes: Leave a store as it is.
        resilience: How the piece that is being moved survives a crash.
        hotzone_size: Bytes that are moved at once, at most.
        workers: Threads.
        journal: Place of the journal of a LUKS1 volume.
    """

    header: Place | None
    resume: bool
    status: bool
    abort: bool
    stop: bool
    init_only: bool
    direct: bool
    as_json: bool
    as_bytes: bool
    resilience: str | None
    hotzone_size: int | None
    workers: int | None
    journal: Place | None

    @property
    def moved(self) -> dict[str, Any]:
        """Arguments of `luks.ReencryptionOptions` that are said."""
        said = {
            "resilience": self.resilience,
            "hotzone_size": self.hotzone_size,
            "workers": self.workers,
            "journal": self.journal,
        }
        return {name: value for name, value in said.items() if value is not None}


def _run(**said: Any) -> Run:
    run = Run(**said)
    names = ("resume", "status", "abort", "stop", "init_only")
    chosen = [f"--{name.replace('_', '-')}" for name in names if getattr(run, name)]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} exclude each other")
    return run


#: Adds what all three verbs have; the command gets it as ``run``.
run_options: Final = taking(
    "run",
    Group(
        _run,
        {
            "header": option(
                "--header", type=IMAGE, metavar="FILE", help="The detached LUKS header."
            ),
            "resume": option(
                "--resume", is_flag=True, help="Continue what was begun, here or by cryptsetup."
            ),
            "status": option("--status", is_flag=True, help="Only say how far it is."),
            "abort": option(
                "--abort", is_flag=True, help="Take back what was begun, if nothing is moved yet."
            ),
            "stop": option("--stop", is_flag=True, help="Have the owner of IMAGE stop for now."),
            "init_only": option(
                "--init-only", is_flag=True, help="Only begin; --resume continues."
            ),
            "direct": option(
                "--direct",
                is_flag=True,
                help="Open IMAGE itself, and do not ask the process that owns it.",
            ),
            "as_json": option("--json", is_flag=True, help="Print JSON: a line now and then."),
            "as_bytes": option(
                "--as-bytes", is_flag=True, help="Leave a store as it is, its flag and key too."
            ),
            "resilience": option(
                "--resilience",
                type=click.Choice(_RESILIENCE),
                help="How the piece that is being moved survives a crash.  [default: checksum]",
            ),
            "hotzone_size": option(
                "--hotzone-size", type=SizeType(), metavar="SIZE", help="Move so much at once."
            ),
            "workers": option(
                "--workers",
                type=click.IntRange(1, 16),
                metavar="N",
                help="Threads that encrypt.  [default: 1]",
            ),
            "journal": option(
                "--journal",
                type=IMAGE,
                metavar="FILE",
                help="Of a LUKS1 volume: its journal.  [default: beside IMAGE]",
            ),
        },
    ),
)


class Cipher(NamedTuple):
    """What the options of `cipher_options` say of the new payload."""

    cipher: str | None
    key_size: int | None
    sector_size: int | None

    @property
    def said(self) -> dict[str, Any]:
        """Arguments of `luks.ReencryptionOptions` and `luks.FormatOptions` that are said."""
        key_size = None if self.key_size is None else bytes_of(self.key_size)
        said = {"cipher": self.cipher, "key_size": key_size, "sector_size": self.sector_size}
        return {name: value for name, value in said.items() if value is not None}


_CIPHER: Final = taking(
    "cipher",
    Group(
        Cipher,
        {
            "cipher": option(
                "--cipher", metavar="CIPHER", help="The new cipher string, as dm-crypt has it."
            ),
            "key_size": option(
                "--key-size",
                type=click.IntRange(min=64),
                metavar="BITS",
                help="Of the new volume key.",
            ),
            "sector_size": option(
                "--sector-size", type=SECTOR_SIZE, help="Bytes of a sector from now on."
            ),
        },
    ),
)


def cipher_options(function: Any) -> Any:
    """Add what says how the new payload is encrypted: ``cipher`` and ``hash_name``."""
    return _CIPHER(HASH(function))


def asked_kdf(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return keywords of new keyslots as the request to an owner has them."""
    asked = {name: value for name, value in chosen.items() if value is not None}
    if "hash_name" in asked:
        asked["hash"] = asked.pop("hash_name")
    cost = asked.pop("kdf", None)
    if isinstance(cost, luks.Pbkdf2):
        asked |= {"pbkdf": "pbkdf2", "iterations": cost.iterations}
    elif isinstance(cost, luks.Argon2):
        asked |= {"pbkdf": cost.variant, "iterations": cost.time}
        asked |= {"memory": cost.memory_kib, "parallel": cost.lanes}
    elif cost is not None:
        asked["pbkdf"] = cost
    return asked


class Begin(NamedTuple):
    """How a verb begins.

    Attributes:
        mode: What it does.
        here: Begins in this process, with the secret.
        asked: Members of the request to an owner.
        new_secret: Whether the secret is one to be set, so that it is typed twice.
    """

    mode: Mode
    here: Callable[[luks.Secret], blobstore.ImageReencryption]
    asked: dict[str, Any]
    new_secret: bool = False


def carry_out(image: Place, key: KeySource, run: Run, begin: Begin) -> None:
    """Do what a verb is asked for: in the owner of the image, if it has one, or here."""
    client = None if run.direct else blobstore.find_owner(image)
    if client is not None:
        with client:
            _at_owner(client, image, key, run, begin)
        return
    if run.stop:
        raise click.UsageError(f"{image} has no owner that could stop")
    if run.status:
        _print_status(blobstore.reencryption_status(image, header=run.header), as_json=run.as_json)
        return
    with _secret(image, key, confirm=begin.new_secret and not (run.resume or run.abort)) as secret:
        if run.abort:
            blobstore.abort_reencryption(image, secret, header=run.header)
        elif run.resume:
            _run_here(_resumed(image, key, secret, run), as_json=run.as_json)
        elif run.init_only:
            begin.here(secret).close()
        else:
            _run_here(begin.here(secret), as_json=run.as_json)


def _resumed(
    image: Place, key: KeySource, secret: luks.Secret, run: Run
) -> blobstore.ImageReencryption | None:
    return blobstore.resume_reencryption(
        image,
        secret,
        header=run.header,
        options=luks.ReencryptionOptions(**run.moved),
        as_bytes=run.as_bytes,
        limits=key.limits,
    )


def _run_here(running: blobstore.ImageReencryption | None, *, as_json: bool) -> None:
    if running is None:
        return
    with running, _reporting(as_json=as_json) as report:
        running.run(lambda status: report(status, "running"))
        if as_json:
            click.echo(json.dumps(_plain(running.status, "finished")))


def _at_owner(client: StoreClient, image: Place, key: KeySource, run: Run, begin: Begin) -> None:
    if run.abort:
        raise click.UsageError("an owner takes nothing back: stop it, and do this with --direct")
    if run.status:
        found = client.reencryption()
        _print_status(found if found.mode else None, as_json=run.as_json, state=found.state)
        return
    if run.stop:
        client.stop_reencryption()
        return
    if run.journal is not None:
        raise click.UsageError("an owner does not re-encrypt LUKS1, which has the journal")
    asked = {**run.moved, "as_bytes": run.as_bytes}
    if run.resume:
        try:  # which it needs no key for, if it has not let go of the volume
            client.begin_reencryption("resume", None, **asked)
        except luks.NoReencryptionError:
            _ask(client, image, key, "resume", asked)
    else:
        if run.header is not None:
            header = run.header
            asked["header"] = str(header.absolute() if isinstance(header, Path) else header)
        asked |= begin.asked
        _ask(
            client, image, key, begin.mode, asked | {"begin_only": run.init_only},
            confirm=begin.new_secret,
        )  # fmt: skip
    if not run.init_only:
        _follow(client, as_json=run.as_json)


def _ask(
    client: StoreClient,
    image: Place,
    key: KeySource,
    mode: str,
    asked: dict[str, Any],
    *,
    confirm: bool = False,
) -> None:
    with _secret(image, key, confirm=confirm) as secret:
        client.begin_reencryption(mode, secret, **asked)


def _follow(client: StoreClient, *, as_json: bool) -> None:
    """Show how far the owner is, until it does not go on. It does if this process ends."""
    with _reporting(as_json=as_json) as report:
        last = client.reencryption()
        for last in client.follow_reencryption():
            report(last, last.state)
    client.require_reencrypted(last)


@contextmanager
def _secret(image: Place, key: KeySource, *, confirm: bool) -> Iterator[luks.Secret]:
    secret = key.read()
    if secret is None:
        new = "New passphrase" if confirm else "Passphrase"
        secret = luks.Secret.from_terminal(f"{new} for {image}: ", confirm=confirm)
    with secret:
        yield secret


@contextmanager
def _reporting(*, as_json: bool) -> Iterator[Callable[[Status, str], None]]:
    """Yield what shows how far it is: lines on stdout, or a bar on a terminal."""
    with ExitStack() as stack:
        advance = stack.enter_context(progress("re-encrypting"))
        told = 0.0

        def report(status: Status, state: str) -> None:
            nonlocal told
            if not as_json:
                advance(status.position, status.size)
            elif state != "running" or time.monotonic() - told >= _LINES:
                told = time.monotonic()
                click.echo(json.dumps(_plain(status, state)))

        yield report


def _plain(status: Status, state: str) -> dict[str, Any]:
    return {"state": state} | {name: getattr(status, name) for name in _SHOWN}


def _print_status(status: Status | None, *, as_json: bool, state: str = "stopped") -> None:
    if status is None:
        click.echo(json.dumps({"state": "none"}) if as_json else "no re-encryption is in progress")
        return
    found = _plain(status, state)
    if as_json:
        click.echo(json.dumps(found))
        return
    share = 100 * status.position / status.size if status.size else 100.0
    click.echo(f"mode        {found['mode']}, {state}")
    click.echo(f"moved       {status.position} of {status.size} bytes, {share:.1f} %")
    click.echo(f"resilience  {found['resilience']}")
    for when in ("old", "new"):
        cipher, sector = found[f"{when}_cipher"], found[f"{when}_sector_size"]
        what = "in the clear" if cipher is None else f"{cipher}, sectors of {sector} bytes"
        click.echo(f"{when}         {what}")
