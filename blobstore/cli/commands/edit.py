"""`blobstore edit`."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

import blobstore
from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.commands.show import VARIABLES
from blobstore.cli.types import (
    Group,
    ParsedType,
    SettingType,
    codec_of,
    layout_option,
    option,
    taking,
)
from formats.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blobstore import Place, Signatures, UefiVariables

Pair = tuple[str, str]


class VariableEdits(NamedTuple):
    """What the options for UEFI variables say, in the order in which it is done."""

    repair: bool
    merge: tuple[Place, ...]
    delete: tuple[str, ...]
    remove_boot_entry: tuple[str, ...]
    add_boot_entry: tuple[Pair, ...]
    enrol: tuple[Pair, ...]
    append: tuple[Pair, ...]
    owner: uuid.UUID | None
    any_signer: bool

    def apply(self, variables: UefiVariables, settings: Sequence[Pair]) -> UefiVariables:
        """Return the variables that are to be there."""
        for place in self.merge:
            variables = variables.merge(blobstore.read_variables_file(place, "uefi-vars"))
        for name in self.delete:
            variables = variables.delete(name)
        for name in self.remove_boot_entry:
            variables = variables.remove_boot_entry(name)
        for name, value in settings:
            data = _read_file(value[1:]) if value.startswith("@") else value
            variables = variables.set(name, data)
        for title, path in self.add_boot_entry:
            variables = variables.add_boot_entry(title, path)
        for name, value in self.enrol:
            variables = variables.enrol(name, self._signatures(value), any_signer=self.any_signer)
        for name, value in self.append:
            variables = variables.append(name, self._signatures(value), any_signer=self.any_signer)
        return variables

    def _signatures(self, value: str) -> Signatures:
        owner = self.owner or uuid.UUID(int=0)
        if value.startswith("sha256:"):
            return blobstore.Signatures.of_hash(value, owner)
        return blobstore.Signatures.decode(_read_file(value), owner)


_VARIABLES = taking(
    "edits",
    Group(
        VariableEdits,
        {
            "any_signer": option(
                "--any-signer",
                is_flag=True,
                help="Take signed files (.auth) whose signer the variables do not trust.",
            ),
            "owner": option(
                "--owner",
                type=ParsedType("guid", uuid.UUID),
                metavar="GUID",
                help="Who enrols certificates and hashes.  [default: zeros]",
            ),
            "append": option(
                "--append",
                type=SettingType(),
                multiple=True,
                metavar="NAME=FILE",
                help="Add to KEK, db or dbx what FILE has, or sha256:HEX.",
            ),
            "enrol": option(
                "--enrol",
                type=SettingType(),
                multiple=True,
                metavar="NAME=FILE",
                help="Put into PK, KEK, db or dbx, in place of what it has: certificates in PEM "
                "or DER, .esl, .auth, or sha256:HEX.",
            ),
            "add_boot_entry": option(
                "--add-boot-entry",
                type=SettingType(),
                multiple=True,
                metavar="TITLE=PATH",
                help=r"Add a boot entry for a program, such as \EFI\debian\grubx64.efi.",
            ),
            "remove_boot_entry": option(
                "--remove-boot-entry",
                multiple=True,
                metavar="NAME",
                help="Remove a boot entry, such as Boot0003, from BootOrder as well.",
            ),
            "delete": option(
                "--delete", multiple=True, metavar="NAME", help="Delete a UEFI variable."
            ),
            "merge": option(
                "--merge",
                type=IMAGE,
                multiple=True,
                metavar="FILE",
                help="Set all variables that FILE has, the JSON of QEMU's uefi-vars.",
            ),
            "repair": option(
                "--repair",
                is_flag=True,
                help="Compute wrong checksums again; of UEFI variables, rescue those of a torn or "
                "damaged flash first.",
            ),
        },
    ),
)


@click.command("edit")
@click.argument("image", type=IMAGE)
@click.argument("words", nargs=-1, metavar="[NAME] [FIELD=VALUE]...")
@click.option("--type", "type_", metavar="TYPE", help="It is of this, whatever its section says.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="IMAGE is a bare file of --type ovmf-vars or uefi-vars: write the changed one here.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@layout_option
@_VARIABLES
@shared_access_options
def command(
    *,
    access: Access,
    image: Place,
    words: tuple[str, ...],
    type_: str | None,
    output: Path | None,
    force: bool,
    layouts: tuple[Path, ...],
    edits: VariableEdits,
) -> None:
    r"""Change fields in the blob NAME of IMAGE, atomically, and what checks them.

    FIELD is named as in manifests, such as board.serial-number or custom[0]. VALUE is
    text, a number, true or false, bytes in hexadecimal, or @FILE for bytes in a file.

    Without NAME, IMAGE is the bare binary of an EEPROM, and is replaced by the changed one.

    If the blob is UEFI variables, FIELD is the name of one, such as Timeout or
    Boot0001, or one with its GUID after a hyphen.
    """
    changes_variables = any(edits._replace(repair=False))
    if output is not None:
        if type_ not in VARIABLES:
            raise click.UsageError("--output is for a bare file of --type ovmf-vars or uefi-vars")
        settings = _settings(words, required=not any(edits))
        after = blobstore.edit_variables_file(
            image,
            output,
            lambda variables: edits.apply(variables, settings),
            type_=type_,
            repair=edits.repair,
            overwrite=force,
        )
        _report(after)
        return
    if force:
        raise click.UsageError("--force goes with --output")
    declared = [blobstore.load_layout(path) for path in layouts]
    kind = codec_of(type_, declared)
    if not words or "=" in words[0]:
        if type_ in VARIABLES or changes_variables:
            raise click.UsageError("name a section, or for a bare file the --output")
        settings = _settings(words, required=not edits.repair)
        kind = blobstore.type_of_file(image, declared) if kind is None else kind
        blobstore.edit_file(image, kind, settings, read_file=_read_file, repair=edits.repair)
        return
    name, settings = words[0], _settings(words[1:], required=not any(edits))
    with access.open_shared(image, read_only=False) as store:
        if not blobstore.holds_variables(store, name, type_):
            if changes_variables:
                raise click.UsageError(f"section {name} does not hold UEFI variables")
            kind = codec_of(store.section(name).type, declared) if kind is None else kind
            blobstore.edit_section(
                store, name, settings, type_=kind, read_file=_read_file, repair=edits.repair
            )
            return
        after = blobstore.edit_variables(
            store,
            name,
            lambda variables: edits.apply(variables, settings),
            type_=type_,
            repair=edits.repair,
        )
    _report(after)


def _settings(words: tuple[str, ...], *, required: bool) -> tuple[Pair, ...]:
    if required and not words:
        raise click.UsageError("say what to change: FIELD=VALUE")
    return tuple(SettingType().convert(word, None, None) for word in words)


def _report(variables: UefiVariables) -> None:
    """Say what a repair has found."""
    for problem in variables.problems:
        click.echo(f"blobstore: repaired: {problem}", err=True)


def _read_file(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise DeviceError(f"cannot read {name}: {error.strerror}") from error
