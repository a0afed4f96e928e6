"""`blobstore key`: the passphrases of a LUKS volume."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

import luks
from blobstore.cli.encryption import HASH, bytes_of, kdf_options, with_hash
from blobstore.cli.header import (
    KEY_SLOT,
    PRIORITIES,
    consent,
    image_and_changed_header,
    image_and_header,
    new_passphrase,
    passphrase,
    unlocked,
    unlocking,
    volume_key_option,
)
from blobstore.cli.keys import PATH, key_options, new_key_options
from blobstore.cli.output import check_other, print_json, print_table, waiting, write_output

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import Place
    from blobstore.cli.keys import KeySource


@click.group("key")
def command() -> None:
    """Manage the passphrases of an image's LUKS volume.

    All of it works while the image is in use: by a store, by QEMU, by a machine.
    """


@command.command("add")
@image_and_changed_header
@KEY_SLOT
@click.option(
    "--priority",
    type=click.Choice(PRIORITIES),
    default="normal",
    help="When it is tried: only by its number, with the others, or before them (LUKS2).",
)
@volume_key_option
@click.option(
    "--unbound",
    is_flag=True,
    help="Store a key that is not the volume's and does not open it (LUKS2).",
)
@click.option(
    "--key-size",
    "bits",
    type=click.IntRange(8, 4096),
    metavar="BITS",
    help="With --unbound: make a random key of this size.",
)
@click.option(
    "--unbound-key-file", type=PATH, metavar="FILE", help="With --unbound: store this key."
)
@HASH
@kdf_options
@new_key_options
@key_options
def add(
    *,
    image: Place,
    place: luks.Place,
    key: KeySource,
    new_key: KeySource,
    key_slot: int | None,
    priority: str,
    volume_key_file: Path | None,
    unbound: bool,
    bits: int | None,
    unbound_key_file: Path | None,
    hash_name: str | None,
    kdf: dict[str, Any],
) -> None:
    """Let another passphrase open IMAGE, too. Prints its keyslot.

    With --unbound it opens another key, which IMAGE keeps beside its own; no
    passphrase of IMAGE is needed then. `key export --key-slot N` gives it out.
    """
    new_slot: dict[str, Any] = {"keyslot": key_slot, "priority": PRIORITIES.index(priority)}
    if unbound:
        if key.is_named or volume_key_file:
            raise click.UsageError("--unbound needs nothing that opens IMAGE")
        with (
            _unbound_key(bits, unbound_key_file) as stored,
            new_passphrase(image, key, new_key) as new,
            waiting("deriving keys"),
            luks.edit(place) as header,
        ):
            cost = with_hash(kdf, hash_name)
            number = header.add_keyslot(new, unbound_key=stored, **new_slot, **cost)
        click.echo(f"keyslot {number}")
        return
    if bits or unbound_key_file:
        raise click.UsageError("--key-size and --unbound-key-file go with --unbound")
    prompt = f"Passphrase for {image}: "
    with (
        unlocked(place, key, prompt, volume_key_file=volume_key_file) as volume_key,
        new_passphrase(image, key, new_key) as new,
        waiting("deriving keys"),
    ):
        number = luks.add_keyslot(
            place,
            volume_key,
            new,
            limits=key.limits,
            **new_slot,
            **_cost(place, with_hash(kdf, hash_name)),
        )
    click.echo(f"keyslot {number}")


def _unbound_key(bits: int | None, file: Path | None) -> luks.Secret:
    """Return the key to store: a random one, or the content of a file."""
    if (bits is None) == (file is None):
        raise click.UsageError("--unbound goes with one of --key-size and --unbound-key-file")
    if file is not None:
        return luks.Secret.from_file(file)
    assert bits is not None, "one of them is given"
    return luks.Secret(os.urandom(bytes_of(bits)))


@command.command("change")
@image_and_changed_header
@KEY_SLOT
@HASH
@kdf_options
@new_key_options
@key_options
def change(
    *,
    image: Place,
    place: luks.Place,
    key: KeySource,
    new_key: KeySource,
    key_slot: int | None,
    hash_name: str | None,
    kdf: dict[str, Any],
) -> None:
    """Replace a passphrase of IMAGE by another. Prints its keyslot.

    The old one opens until the new one is durable; then its key material is
    erased. In LUKS2 the keyslot keeps its number, priority and tokens; and its hash,
    unless --hash names another.
    """
    prompt = f"Passphrase to change, for {image}: "
    with (
        unlocked(place, key, prompt, keyslot=key_slot) as volume_key,
        new_passphrase(image, key, new_key) as new,
        waiting("deriving keys"),
        luks.edit(place, limits=key.limits) as header,
    ):
        number = volume_key.keyslot
        assert number is not None, "a passphrase opens a keyslot"
        header.unlock(volume_key)
        cost = with_hash(kdf, hash_name or header.header.keyslots[number].af_hash)
        number = header.change_keyslot(number, new, **cost)
    click.echo(f"keyslot {number}")


@command.command("remove")
@image_and_changed_header
@KEY_SLOT
@click.option(
    "--with-tokens", is_flag=True, help="Remove tokens, too, that are for no other keyslot."
)
@click.option("--force", is_flag=True, help="Remove the last one, too: then nothing opens it.")
@key_options
def remove(
    *,
    image: Place,
    place: luks.Place,
    key: KeySource,
    key_slot: int | None,
    with_tokens: bool,
    force: bool,
) -> None:
    """Remove a keyslot of IMAGE by its number, or the one that a passphrase opens.

    Its key material is erased. Backups of the header still have it.
    """
    number = key_slot
    if key_slot is None or key.is_named:
        prompt = f"Passphrase to remove, for {image}: "
        with unlocked(place, key, prompt, keyslot=key_slot) as volume_key:
            number = volume_key.keyslot
    assert number is not None, "a passphrase opens a keyslot"
    with luks.edit(place) as header:
        before = header.header.tokens
        header.remove_keyslot(number, force=force)
        left = [n for n, token in header.header.tokens.items() if not token.keyslots]
        stale = [n for n in left if before[n].keyslots]
        for token in stale if with_tokens else ():
            header.remove_token(token)
    if stale and not with_tokens:
        numbers = ", ".join(map(str, stale))
        click.echo(f"blobstore: token {numbers} has no keyslot any more", err=True)
    click.echo(f"keyslot {number}")


@command.command("list")
@image_and_header
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(*, image: Place, place: luks.Place, as_json: bool) -> None:
    """List the keyslots of IMAGE: what they cost, and which tokens are for them."""
    del image
    header = luks.load_header(place)
    keyslots: dict[str, dict[str, Any]] = luks.describe_header(header)["keyslots"]
    if as_json:
        print_json([{"keyslot": int(number), **slot} for number, slot in keyslots.items()])
        return
    rows: list[tuple[str, ...]] = [("KEYSLOT", "KEY DERIVATION", "PRIORITY", "OPENS", "TOKENS")]
    for number, slot in keyslots.items():
        names = [f"{n} ({luks.token_name(header.tokens[n])})" for n in slot["tokens"]]
        priority = slot["priority"]
        rows.append(
            (
                number,
                slot["problem"] or _cost_text(slot["kdf"]),
                PRIORITIES[priority] if 0 <= priority < len(PRIORITIES) else "unknown",
                _opens(slot),
                ", ".join(names),
            )
        )
    print_table(rows, right=frozenset((0,)))


@command.command("test")
@image_and_header
@KEY_SLOT
@click.option(
    "--token", type=click.IntRange(min=0), metavar="N", help="Ask this token for the passphrase."
)
@volume_key_option
@key_options
def test(
    *,
    image: Place,
    place: luks.Place,
    key: KeySource,
    key_slot: int | None,
    token: int | None,
    volume_key_file: Path | None,
) -> None:
    """Find out if a passphrase or volume key opens IMAGE. Prints the keyslot.

    With --key-slot also if a passphrase opens a keyslot whose key is not the volume's.

    Exits with 51 if a passphrase opens no keyslot, with 50 if it is not the volume
    key. Nothing is written.
    """
    if token is not None:
        if key.is_named or volume_key_file:
            raise click.UsageError("--token and a key exclude each other")
        _test_token(place, token, key.limits)
        return
    with unlocking(image, place, key, volume_key_file) as secret:
        if isinstance(secret, luks.VolumeKey):
            click.echo("volume key")
        else:
            _report(place, secret, key_slot, key.limits)


def _test_token(place: luks.Place, number: int, limits: luks.KdfLimits) -> None:
    header = luks.load_header(place)
    with luks.token_secret(header, number) as secret:
        error: luks.StorageError = luks.UnlockError(f"token {number} is for no keyslot")
        for keyslot in header.tokens[number].keyslots:
            try:
                _report(place, secret, keyslot, limits)
            except luks.NoKeyslotMatchError as wrong:
                error = wrong
            else:
                return
        raise error


def _report(
    place: luks.Place, secret: luks.Secret, keyslot: int | None, limits: luks.KdfLimits
) -> None:
    """Print the keyslots that a secret opens: one for each key of the volume (L180).

    An unbound keyslot is tried only if it is named (L141).
    """
    with luks.open_header(place) as (device, header), waiting("deriving keys"):
        if keyslot is not None and keyslot in header.unbound_keyslots:
            luks.unbound_key(device, header, secret, keyslot, limits=limits).wipe()
            opened: list[int | None] = [keyslot]
        else:
            keys = luks.unlock_all(device, header, secret, keyslot=keyslot, limits=limits)
            keys.wipe()
            opened = [key.keyslot for key in keys.by_digest.values()]
    for number in opened:
        click.echo(f"keyslot {number}")


def _open_keyslot(
    place: luks.Place, secret: luks.Secret, keyslot: int | None, limits: luks.KdfLimits
) -> luks.VolumeKey:
    """Return the key that a secret opens, in an unbound keyslot only if that is named (L141)."""
    with luks.open_header(place) as (device, header), waiting("deriving keys"):
        if keyslot is not None and keyslot in header.unbound_keyslots:
            key = luks.unbound_key(device, header, secret, keyslot, limits=limits)
            return luks.VolumeKey(key, keyslot)
        return luks.unlock(device, header, secret, keyslot=keyslot, limits=limits)


def _opens(slot: dict[str, Any]) -> str:
    if slot["type"] == "reencrypt":
        return "nothing: it records a re-encryption"
    return "the volume" if slot["holds_volume_key"] else "another key"


@command.command("export")
@image_and_header
@click.option(
    "-o", "output", type=PATH, required=True, metavar="FILE", help="Where the volume key goes."
)
@click.option("--force", is_flag=True, help="Do not ask, and overwrite FILE.")
@KEY_SLOT
@key_options
def export(
    *,
    image: Place,
    place: luks.Place,
    key: KeySource,
    key_slot: int | None,
    output: Path,
    force: bool,
) -> None:
    """Write the volume key of IMAGE, or an unbound key, to a file, for escrow.

    Who has it reads the image for good: no change of passphrases takes it back.
    """
    check_other(output, image, place)
    consent(f"Write the key that opens {image} for good to {output}?", force=force)
    with passphrase(key, f"Passphrase for {image}: ") as secret:
        opened = _open_keyslot(place, secret, key_slot, key.limits)
        with opened.key:
            write_output(output, opened.key.view(), force=force)


@command.command("destroy")
@image_and_changed_header
@click.option("--force", is_flag=True, help="Do not ask.")
def destroy(*, image: Place, place: luks.Place, force: bool) -> None:
    """Remove all keyslots of IMAGE and erase their key material.

    Only a backup of the header or of the volume key opens it again.
    """
    luks.load_header(place)  # nothing is asked about what is not there
    consent(f"Destroy all keys of {image}, so that it cannot be read again?", force=force)
    luks.destroy_keys(place)


def _cost(place: luks.Place, kdf: dict[str, Any]) -> dict[str, Any]:
    """Return the cost with the one hash that a LUKS1 header has."""
    cost, header = kdf["kdf"], luks.load_header(place)
    if header.version == 1 and isinstance(cost, luks.Pbkdf2):
        digest = header.digests[0].kdf
        assert digest is not None, "a LUKS1 digest is PBKDF2"
        return {**kdf, "kdf": luks.Pbkdf2(digest.hash_name, cost.iterations)}
    return kdf


def _cost_text(kdf: dict[str, Any] | None) -> str:
    if kdf is None:
        return "unknown"
    if kdf["type"] == "pbkdf2":
        return f"pbkdf2-{kdf['hash']}, {kdf['iterations']} iterations"
    return f"{kdf['type']}, {kdf['time']} passes, {kdf['memory_kib']} KiB, {kdf['lanes']} lanes"
