"""`blobstore-swtpm`: `blobstore vtpm` with the arguments of swtpm (V97 to V99).

Programs that start ``swtpm`` by its name put the state's place into ``--tpmstate`` and
its key into ``--key``, and nothing else can be told to them. Both are translated here;
all other arguments are those of `blobstore.cli.commands.vtpm`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from blobstore import __version__, vtpm
from blobstore.cli.commands import vtpm as verb
from blobstore.cli.main import run, set_up_messages
from blobstore.cli.state_key import KeyType
from blobstore.cli.types import ParsedType
from blobstore.vtpm import swtpm_options as options
from formats.errors import DeviceError, UnsupportedError, device_error

if TYPE_CHECKING:
    from blobstore import StateKeySource

_NAME: Final = "blobstore-swtpm"
#: The image in a directory that is named in swtpm's way.
_IMAGE: Final = "tpm.img"
_FILES: Final = ("blobstore://", "file://")
_DIRECTORIES: Final = "dir://"
_KEY_FILE: Final = "BLOBSTORE_SWTPM_KEY_FILE"
_KEY_FEATURES: Final = ("cmdarg-key-fd", "cmdarg-pwd-fd")
_PLACE_FEATURES: Final = ("nvram-backend-dir", "nvram-backend-file")


@click.group(_NAME, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=_NAME)
def cli() -> None:
    """Be a TPM, started as `swtpm` is, whose state is in an image of blobstore."""
    set_up_messages(quiet=False)


def _image_of(place: Path | str | None, root: Path | None) -> str | None:
    """Return the image that ``--tpmstate`` names (V98), in the root directory that is to be.

    Raises:
        click.UsageError: Its URI has another form.
        DeviceError: The image is to be in a directory, and is not.
    """
    if place is None:
        place = Path(os.environ["TPM_PATH"]) if os.environ.get("TPM_PATH") else None
    elif isinstance(place, str) and place.startswith(_DIRECTORIES):
        place = Path(place.removeprefix(_DIRECTORIES))
    if isinstance(place, Path):
        image = place / _IMAGE
        if not _in_root(image, root).exists():
            raise DeviceError(
                f"there is no image {image} [V98]",
                hint=f"make one with `blobstore create {image}`, and import the state that swtpm"
                " has there if it is to go on",
            )
        return str(image)
    if place is None:
        return None
    for scheme in _FILES:
        if place.startswith(scheme):
            return place.removeprefix(scheme)
    known = ", ".join((*_FILES, _DIRECTORIES))
    raise click.UsageError(f"--tpmstate: backend-uri={place} is none of {known}")


def _in_root(path: Path, root: Path | None) -> Path:
    """Return where a path is before its root directory is that of this process."""
    return path if root is None else root / path.relative_to(path.anchor)


def _key_options(key: StateKeySource | None, root: Path | None) -> list[str]:
    """Return where the passphrase is, in the words of `blobstore vtpm` (V99).

    A file that is to be removed is removed here: its content can be read once.

    Raises:
        DeviceError: It cannot be read.
    """
    if key is not None and key.remove and not key.is_descriptor:
        removed = _in_root(Path(key.place), root)
        try:
            descriptor = os.open(removed, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise device_error(error, f"cannot read {removed}") from error
        try:
            removed.unlink()
        except OSError as error:
            click.echo(f"{_NAME}: {removed} cannot be removed: {error.strerror}", err=True)
        return ["--key-fd", str(descriptor)]
    if key is not None:
        return ["--key-fd" if key.is_descriptor else "--key-file", key.place]
    file = os.environ.get(_KEY_FILE)
    return ["--key-file", file] if file else []


@cli.command("socket", context_settings={"ignore_unknown_options": True})
@click.option(
    "--tpmstate",
    type=ParsedType("tpmstate", options.parse_state_place),
    metavar="dir=DIR|backend-uri=URI[,...]",
    help=f"The image: blobstore://IMAGE, file://IMAGE, or {_IMAGE} in this directory.",
)
@click.option("--key", type=KeyType(removable=True), metavar="SPEC", help="The image's passphrase.")
@click.option("--tpm2", is_flag=True, help="A TPM 2.0, and not a TPM 1.2.")
@click.option(
    "-R",
    "--chroot",
    "root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Have DIR as the root directory.",
)
@click.option("--print-capabilities", is_flag=True, help="Print what this can, as JSON.")
@click.argument("rest", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF blobstore vtpm]")
def socket(
    *,
    tpmstate: Path | str | None,
    key: StateKeySource | None,
    tpm2: bool,
    root: Path | None,
    print_capabilities: bool,
    rest: tuple[str, ...],
) -> None:
    """Serve at sockets, as `swtpm socket` does; `blobstore vtpm --help` has the other options."""
    version = vtpm.TpmVersion.TPM_2 if tpm2 else vtpm.TpmVersion.TPM_12
    if print_capabilities:
        said = vtpm.swtpm_capabilities(version, keys=_KEY_FEATURES, places=_PLACE_FEATURES)
        click.echo(vtpm.swtpm_text(said))
        return
    image = _image_of(tpmstate, root)
    arguments = [
        *rest,
        *([] if root is None else ["--chroot", str(root)]),
        f"--tpm{version}" if version is vtpm.TpmVersion.TPM_12 else "--tpm2",
    ]
    if image is None:
        if not any(one.startswith(("--print-info", "--print-profiles")) for one in rest):
            raise click.UsageError("there is no --tpmstate, which names the image")
    else:
        arguments += [*_key_options(key, root), "--", image]
    verb.command.main(arguments, prog_name=f"{_NAME} socket", standalone_mode=False)


def _refused(name: str) -> click.Command:
    def refuse(rest: tuple[str, ...]) -> None:
        del rest
        raise UnsupportedError(
            f"{_NAME} has no {name} [V96]", feature=f"swtpm {name}", hint="use socket"
        )

    rest = click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED)
    settings = {"ignore_unknown_options": True}
    return click.Command(
        name, params=[rest], callback=refuse, hidden=True, context_settings=settings
    )


for _interface in ("chardev", "cuse"):
    cli.add_command(_refused(_interface))


def start() -> None:
    """Run it; does not return."""
    run(cli, _NAME)
