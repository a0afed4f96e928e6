"""The `blobstore` command: its verbs, loaded when used, and its exit codes."""

from __future__ import annotations

import importlib
import keyword
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from blobstore import __version__
from blobstore.cli.streams import ReaderGoneError, secure
from formats.errors import ArgumentError, StorageError
from formats.logs import configure_with

if TYPE_CHECKING:
    from collections.abc import Callable

#: Verb to what it does. Each lives in blobstore.cli.commands.VERB as `command`.
VERBS: Final = {
    "create": "Make a new, empty image.",
    "pack": "Make an image out of a manifest and the files it names.",
    "unpack": "Write an image's blobs and a manifest to a directory.",
    "ls": "List the sections of an image.",
    "info": "Show what an image is and where each byte of it goes.",
    "show": "Show what an EEPROM's blob says, field by field.",
    "edit": "Change fields in an EEPROM's blob, checksums included.",
    "get": "Read a blob.",
    "put": "Replace a blob, atomically and durably.",
    "restore": "Go back to the blob before the newest.",
    "rm": "Delete sections.",
    "mv": "Rename a section.",
    "resize": "Change the worst-case size of a section.",
    "grow": "Make an image larger.",
    "compact": "Move sections together, so that free space is in larger pieces.",
    "backup": "Copy an image, also while it is in use.",
    "copy": "Copy an image to another place, or hand it over to that.",
    "clone": "Make an independent store with the same sections.",
    "convert": "Write an image's payload into another: LUKS1, LUKS2, in the clear.",
    "reencrypt": "Give an image a new volume key, cipher or sector size, in place.",
    "encrypt": "Encrypt an image in place.",
    "decrypt": "Decrypt an image in place.",
    "diff": "Compare two images section by section.",
    "import": "Store the state that swtpm, OVMF or QEMU keep in files.",
    "export": "Write such files.",
    "serve": "Own an image, and serve its store on a socket.",
    "mount": "Show the sections of an image as files in a directory.",
    "owner": "Ask the owner of an image: show, release, take-over.",
    "vtpm": "Be a TPM whose state is in an image, in swtpm's place.",
    "key": "Manage passphrases: add, change, remove, list, test, export, destroy.",
    "token": "Manage LUKS2 tokens, which say where passphrases are.",
    "luks": "Make LUKS volumes, and configure, show and repair their headers.",
    "header": "Show, back up, restore or move the LUKS header.",
    "amend": "Make keyslots active or inactive, as QEMU's amend does.",
    "snapshot": "Manage snapshots in qcow2 images: create, list, apply, delete.",
    "check": "Check the tables of a qcow2 image, and repair them.",
    "measure": "Say how large a qcow2 image becomes.",
    "verify": "Read and check everything in an image, and repair it.",
    "scrub": "Rewrite every section, and wipe the space that none uses.",
    "benchmark": "Measure key derivations, ciphers and durable puts on this machine.",
}

EXIT_CODES: Final = """\
Exit codes:

\b
   0  success
   1  any other failure         2  wrong usage
  20  the device failed        21  no space left        22  read-only
  23  image in use             24  used after a fork    25  image replaced
  30  broken format            31  empty image
  32  foreign file             33  truncated image      34  container header damaged
  35  LUKS header damaged      36  LUKS header exists   37  field out of limits
  38  qcow2 image corrupt      39  qcow2 space leaked   40  unsupported
  41  no such snapshot         42  snapshot exists      43  snapshot ambiguous
  44  no re-encryption to go on with
  45  a re-encryption has to end first
  50  cannot unlock            51  wrong passphrase or damaged keyslot
  52  no passphrase            53  refused by policy    54  no keyslot left
  55  secret ill-defined       56  secret not encoded as defined
  58  header of another volume  59  keyslot in use
  60  store failure
  61  no such blob             62  blob never written   63  blob too large
  64  no room in the image     65  corrupt blob         66  damaged head
  67  parts contradict         68  an earlier write failed
  69  image exists             70  section is another   71  manifest unusable
  72  output exists            73  section exists       74  no previous blob
  75  not the pinned state     76  wrong key of TPM state, or damage
  77  store too busy           78  changed since it was looked at
  79  configuration unusable   80  unfinished copy      81  image moved away
 130  interrupted
 141  the reader of a pipe that stdout is went away
"""


class _Verbs(click.Group):
    """A group that imports a verb only when it runs, and not for ``--help``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"blobstore.cli.commands.{_module(cmd_name)}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _module(verb: str) -> str:
    """Return the name of a verb's module; no module can be called like a keyword."""
    return f"{verb}_" if keyword.iskeyword(verb) else verb


@click.command(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
# Named, because to find it out `importlib.metadata` would take 13 ms.
@click.version_option(__version__, prog_name="blobstore")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors on stderr.")
def cli(*, quiet: bool) -> None:
    """Keep the state of devices in one crash-safe, encrypted image.

    Blobs have names and lie in a DER container inside an ordinary LUKS volume.
    Data goes to stdout, everything else to stderr. IMAGE is a file, a block
    device, nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH or rbd:POOL/IMAGE.
    """
    set_up_messages(quiet=quiet)


def set_up_messages(*, quiet: bool) -> None:
    """Let what the library logs go to stderr: warnings and errors, or errors only."""

    def configure() -> None:
        import logging  # noqa: PLC0415, TID251  only if there is something to say

        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("blobstore: %(message)s"))
        logging.basicConfig(level=logging.ERROR if quiet else logging.WARNING, handlers=[handler])

    configure_with(configure)


def main() -> None:
    """Run the command line and exit with its code, once all that it printed is written."""
    run(cli, "blobstore")


def run(command: click.Command, name: str) -> None:
    """Run a program of that name and exit with its code, as `main`."""
    secure()
    code = _code_of(lambda: command.main(prog_name=name, standalone_mode=False))
    late = _code_of(sys.stdout.flush)
    sys.exit(code or late)


def _code_of(run: Callable[[], Any]) -> Any:
    """Return the exit code of what runs, or of the error that it ends with, which is printed."""
    try:
        return run()
    except click.ClickException as error:
        error.show()
        return 2 if isinstance(error, click.UsageError) else 1
    except ArgumentError as error:  # and no other ValueError: that is a defect
        click.UsageError(str(error)).show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("blobstore: interrupted", err=True)
        return 130
    except StorageError as error:
        click.echo(f"blobstore: {error}", err=True)
        if error.hint:
            click.echo(f"blobstore: {error.hint}", err=True)
        return error.exit_code
    except ReaderGoneError:
        return 128 + 13  # as a program that SIGPIPE ends, which Python ignores
    except SystemExit as end:
        return end.code
