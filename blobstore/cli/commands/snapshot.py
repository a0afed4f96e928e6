"""`blobstore snapshot`: internal snapshots of qcow2 images."""

from __future__ import annotations

import functools
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

import blobstore
from blobstore.cli.access import IMAGE, Access, shared_access_options, snapshot_key
from blobstore.cli.differences import difference_options, show_differences
from blobstore.cli.output import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore import Place, Snapshot, SnapshotKey
    from blobstore.owner import AnyStore, StoreClient

_IMAGE = click.argument("image", type=IMAGE)
_ID = click.option("--id", "id_", metavar="ID", help="Mean the snapshot with this ID.")
_NAMED = click.option("--name", metavar="NAME", help="Mean the snapshot with this name.")
_DIRECT = click.option(
    "--direct", is_flag=True, help="Open IMAGE itself, and do not ask the process that owns it."
)


@click.group("snapshot")
def command() -> None:
    """Manage the internal snapshots of a qcow2 image.

    They are those that `qemu-img snapshot` and QEMU's savevm make and show. SNAPSHOT is the
    ID or the name of one; where it could be either of two, --id or --name says which. No key
    is needed: a snapshot of an encrypted disk is one too.

    Of an image that has an owner, that one does all of it: a snapshot is then of one moment
    of all devices. It applies none while devices may use the store.
    """


def _which(function: Callable[..., None]) -> Callable[..., None]:
    """Add what says which snapshot is meant; the function gets it as ``which``."""

    @functools.wraps(function)
    def wrapped(*, wanted: str | None, id_: str | None, name: str | None, **rest: Any) -> None:
        which = snapshot_key(wanted, id_, name)
        if which is None:
            raise click.UsageError("name a snapshot: SNAPSHOT, --id or --name")
        function(which=which, **rest)

    return click.argument("wanted", metavar="[SNAPSHOT]", required=False)(_ID(_NAMED(wrapped)))


@command.command("create")
@_IMAGE
@click.argument("name")
@_DIRECT
def create(*, image: Place, name: str, direct: bool) -> None:
    """Keep the disk in IMAGE as it is now under NAME."""
    with _owner(image, direct=direct) as owner:
        if owner is None:
            blobstore.create_snapshot(image, name)
        else:
            owner.create_snapshot(name)


@command.command("list")
@_IMAGE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_DIRECT
def list_(*, image: Place, as_json: bool, direct: bool) -> None:
    """List the snapshots in IMAGE."""
    with _owner(image, direct=direct) as owner:
        snapshots = blobstore.list_snapshots(image) if owner is None else owner.snapshots()
    if as_json:
        print_json([_described(snapshot) for snapshot in snapshots])
        return
    rows: list[tuple[str, ...]] = [("ID", "NAME", "MADE", "DISK SIZE", "MACHINE STATE")]
    rows += [
        (
            _printable(snapshot.id),
            _printable(snapshot.name),
            datetime.fromtimestamp(snapshot.seconds, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "" if snapshot.disk_size is None else str(snapshot.disk_size),
            str(snapshot.vm_state_size),
        )
        for snapshot in snapshots
    ]
    print_table(rows, right=frozenset((3, 4)))


@command.command("apply")
@_IMAGE
@_which
@_DIRECT
def apply(*, image: Place, which: str | SnapshotKey, direct: bool) -> None:
    """Make the disk in IMAGE what it was when SNAPSHOT was made.

    What it is now is lost, unless another snapshot has it.
    """
    with _owner(image, direct=direct) as owner:
        if owner is None:
            blobstore.apply_snapshot(image, which)
        else:
            owner.apply_snapshot(which)


@command.command("delete")
@_IMAGE
@_which
@_DIRECT
def delete(*, image: Place, which: str | SnapshotKey, direct: bool) -> None:
    """Give up SNAPSHOT, and free what only it uses."""
    with _owner(image, direct=direct) as owner:
        if owner is None:
            blobstore.delete_snapshot(image, which)
        else:
            owner.delete_snapshot(which)


@command.command("diff")
@_IMAGE
@_which
@click.argument("other", metavar="[OTHER]", required=False)
@click.option("--other-id", metavar="ID", help="Compare with the snapshot with this ID.")
@click.option("--other-name", metavar="NAME", help="Compare with the snapshot with this name.")
@difference_options
@shared_access_options
def diff(
    *,
    access: Access,
    image: Place,
    which: str | SnapshotKey,
    other: str | None,
    other_id: str | None,
    other_name: str | None,
    as_json: bool,
    exit_code: bool,
) -> None:
    """Show which sections differ between SNAPSHOT and the store as it is now.

    Or between SNAPSHOT and the snapshot OTHER. The key is that of today: a snapshot that
    was made before it was changed is opened with what opened it then.
    """
    if access.snapshot is not None:
        raise click.UsageError("the snapshots are named after IMAGE, or by --id and --name")
    other_key = snapshot_key(other, other_id, other_name)
    access = access._replace(key=access.key.reusable())
    with ExitStack() as stack:
        owner: AnyStore | None = access.find_owner(image)
        if owner is not None:
            stack.enter_context(owner)
        before = stack.enter_context(access._replace(snapshot=which).open(image))
        after = owner if other_key is None else None
        if after is None:
            after = stack.enter_context(access._replace(snapshot=other_key).open(image))
        differences = blobstore.compare(before, after)
    show_differences(differences, as_json=as_json, exit_code=exit_code)


@contextmanager
def _owner(image: Place, *, direct: bool) -> Iterator[StoreClient | None]:
    """Yield the store of the process that owns an image, if there is one to be asked."""
    client = None if direct else blobstore.find_owner(image)
    if client is None:
        yield None
        return
    with client:
        yield client


def _described(snapshot: Snapshot) -> dict[str, str | int | None]:
    return {
        "id": _printable(snapshot.id),
        "name": _printable(snapshot.name),
        "date-sec": snapshot.seconds,
        "date-nsec": snapshot.nanoseconds,
        "vm-clock-sec": snapshot.vm_clock // 10**9,
        "vm-clock-nsec": snapshot.vm_clock % 10**9,
        "vm-state-size": snapshot.vm_state_size,
        "disk-size": snapshot.disk_size,
    }


def _printable(text: str) -> str:
    """Return what a terminal can be shown of a name that anyone may have chosen."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
