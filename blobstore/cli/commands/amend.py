"""`blobstore amend`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import click

import luks
from blobstore.cli.header import image_and_changed_header
from blobstore.cli.keys import key_options
from blobstore.cli.output import waiting

if TYPE_CHECKING:
    from blobstore import Place
    from blobstore.cli.keys import KeySource

# What QEMU calls the options of a keyslot, and the type of each.
_OPTIONS: Final = {
    "driver": str,
    "state": str,
    "new-secret": str,
    "old-secret": str,
    "keyslot": int,
    "iter-time": int,
    "secret": str,
}
# What surrounds them in the command.
_AROUND: Final = frozenset({"options", "force", "job-id", "node-name"})


@click.command("amend")
@image_and_changed_header
@click.option(
    "--json",
    "text",
    required=True,
    metavar="OPTIONS",
    help="What is to be, as QEMU's blockdev-amend takes it; secrets by their --object's id.",
)
@click.option("--force", is_flag=True, help="Make the last keyslots inactive, too.")
@click.option(
    "--strict-qemu", is_flag=True, help="Fail where nothing is to be done, as qemu-img does."
)
@key_options
def command(
    *,
    image: Place,
    place: luks.Place,
    key: KeySource,
    text: str,
    force: bool,
    strict_qemu: bool,
) -> None:
    """Make keyslots of IMAGE active or inactive, as QEMU's amend does.

    \b
    {"state": "active", "new-secret": ID, "keyslot": N, "iter-time": MS}
    {"state": "inactive", "keyslot": N}
    {"state": "inactive", "old-secret": ID}
    {"driver": "qcow2", "encrypt": {"state": ...}}

    Prints the keyslots whose state changed.
    """  # noqa: D301  click's mark, not a backslash
    options, forced = _parse(text)
    with ExitStack() as stack:
        objects = luks.SecretObjects(key.objects)
        secrets: dict[str, luks.Secret] = {
            name: stack.enter_context(objects.resolve(options[name]))
            for name in ("secret", "new-secret", "old-secret")
            if name in options
        }
        unlocking = secrets.get("secret")
        if options["state"] == "active" and unlocking is None:
            unlocking = key.read()
            if unlocking is None:
                unlocking = luks.Secret.from_terminal(f"Passphrase for {image}: ")
            stack.enter_context(unlocking)
        with waiting("deriving keys"):
            changed = luks.amend(
                place,
                state=options["state"],
                secret=unlocking,
                new_secret=secrets.get("new-secret"),
                old_secret=secrets.get("old-secret"),
                keyslot=options.get("keyslot"),
                iter_time=options.get("iter-time"),
                force=force or forced,
                strict_qemu=strict_qemu,
                limits=key.limits,
            )
    for number in changed:
        click.echo(f"keyslot {number} is {options['state']}")
    if not changed:
        click.echo("nothing was to be done")


def _parse(text: str) -> tuple[dict[str, Any], bool]:
    """Return the options of the keyslot, and whether it is forced."""
    try:
        given: Any = json.loads(text, object_pairs_hook=_object)
    except ValueError as error:
        raise click.UsageError(f"--json: {error}") from error
    forced = False
    if isinstance(given, dict) and "options" in given:
        if not given.keys() <= _AROUND:
            raise click.UsageError(f"--json takes {', '.join(sorted(_AROUND))} around its options")
        forced = given.get("force", False)
        given = given["options"]
    if isinstance(given, dict) and given.get("driver") == "qcow2":
        given = _encryption(given)
    if not isinstance(given, dict) or not isinstance(forced, bool):
        raise click.UsageError("--json takes an object, and force is true or false")
    for name, value in given.items():
        kind = _OPTIONS.get(name)
        if kind is None:
            raise click.UsageError(f"--json knows {', '.join(_OPTIONS)}, and not {name!r}")
        if type(value) is not kind:
            raise click.UsageError(f"--json: {name} is of another type")
    if given.pop("driver", "luks") != "luks":
        raise click.UsageError("only the drivers luks and qcow2 are amended")
    if "state" not in given:
        raise click.UsageError("--json needs a state, active or inactive")
    return given, forced


def _encryption(given: dict[str, Any]) -> Any:
    """Return the options of a keyslot from those of a qcow2 image."""
    inner = given.get("encrypt")
    if given.keys() != {"driver", "encrypt"} or not isinstance(inner, dict) or "driver" in inner:
        raise click.UsageError("--json: of a qcow2 image, encrypt is amended, which is an object")
    inner = dict(inner)
    if inner.pop("format", "luks") != "luks":
        raise click.UsageError("--json: only encryption of the format luks is amended")
    return inner


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a member is there twice")
    return value
