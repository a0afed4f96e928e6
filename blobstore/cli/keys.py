"""The options that say where a secret is, and reading it from there.

A secret comes from one of these, or from the terminal; never from an argument,
which anyone could read.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

import luks
from blobstore.cli.types import Group, option, taking

if TYPE_CHECKING:
    from blobstore.cli.types import Command

#: A file or device that a command reads or writes.
PATH = click.Path(path_type=Path)

_STDIN: Final = 0
#: Where what `object_option` defines is kept of a command.
_OBJECTS: Final = "blobstore.objects"


class KeySource(NamedTuple):
    """What the options of `key_group` say.

    Attributes:
        file: Key file, ``-`` for stdin.
        fd: File descriptor.
        secret_id: Id of one of ``objects``.
        credential: Name of a systemd credential.
        command: What prints the secret.
        offset: Bytes of the key file to skip.
        size: Bytes of the key file to take, or None for all.
        objects: Definitions of secrets.
        held: The secret itself, if it was read before.
        slow_factor: How many times the usual cost its key derivation may have.
    """

    file: Path | None = None
    fd: int | None = None
    secret_id: str | None = None
    credential: str | None = None
    command: str | None = None
    offset: int = 0
    size: int | None = None
    objects: tuple[luks.SecretObject, ...] = ()
    held: luks.Secret | None = None
    slow_factor: int = 1

    @property
    def limits(self) -> luks.KdfLimits:
        """What deriving the key may cost at most (L140)."""
        return luks.KdfLimits().scaled(self.slow_factor)

    @property
    def named(self) -> list[object]:
        """What names a secret: nothing, or one of five."""
        places = (self.file, self.fd, self.secret_id, self.credential, self.command)
        return [place for place in places if place is not None]

    @property
    def is_named(self) -> bool:
        """Whether there is a secret; if not, the terminal is asked."""
        return bool(self.named)

    @property
    def is_stdin(self) -> bool:
        """Whether the secret is read from stdin, so that nothing else can be."""
        return self.fd == _STDIN or self.file == Path("-")

    def reusable(self) -> KeySource:
        """Return a source that can be read twice, as a pipe cannot.

        It is read now and kept until the command ends, then wiped.
        """
        held = self.read()
        if held is None:
            return self
        click.get_current_context().call_on_close(held.wipe)
        return self._replace(held=held)

    def read(self) -> luks.Secret | None:
        """Return the secret, which is the caller's to wipe, or None if none is named."""
        if self.held is not None:
            return luks.Secret(self.held.view())
        if self.fd is not None or self.is_stdin:
            fd = _STDIN if self.fd is None else self.fd
            return luks.Secret.from_fd(fd, offset=self.offset, size=self.size)
        if self.file is not None:
            return luks.Secret.from_file(self.file, offset=self.offset, size=self.size)
        if self.secret_id is not None:
            return luks.SecretObjects(self.objects).resolve(self.secret_id)
        if self.credential is not None:
            return luks.Secret.from_credential(self.credential)
        if self.command is None:
            return None
        try:
            command = shlex.split(self.command)
        except ValueError as error:
            raise click.UsageError(f"--key-command: {error}") from error
        import signal  # noqa: PLC0415  only a --key-command needs it

        # Who started us may have ignored it; then a command that fails is not noticed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return luks.Secret.from_command(command)


class _ObjectType(click.ParamType["luks.SecretObject"]):
    """``secret,id=ID,…`` as QEMU's ``-object`` takes it."""

    name = "object"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> luks.SecretObject:
        del param, ctx
        # What is wrong with it has an exit code of its own.
        return value if isinstance(value, luks.SecretObject) else luks.SecretObject.parse(value)


def key_group(whose: str = "", of: str | None = None) -> Group:
    """Return the options that name a secret; they make a `KeySource`.

    Args:
        whose: A word before their names, such as ``new``: ``--new-key-file``.
        of: What the help says of the passphrase; by default whose image it is of.
    """
    key = f"--{whose}-key" if whose else "--key"
    if of is None:
        of = f" of the {whose} image" if whose else ""
    return Group(
        _key_source,
        {
            "file": option(
                f"{key}-file",
                type=PATH,
                metavar="FILE",
                help=f"Take the passphrase{of} from this file; - is stdin.",
            ),
            "fd": option(
                f"{key}-fd",
                type=click.IntRange(min=0),
                metavar="N",
                help=f"Take the passphrase{of} from this descriptor.",
            ),
            "secret_id": option(
                f"{key}-secret",
                metavar="ID",
                help=f"Take the passphrase{of} from this --object.",
            ),
            "credential": option(
                f"{key}-credential",
                metavar="NAME",
                help=f"Take the passphrase{of} from this systemd credential.",
            ),
            "command": option(
                f"{key}-command",
                metavar="COMMAND",
                help=f"Run this, without a shell; what it prints is the passphrase{of}.",
            ),
            "offset": option(
                f"{key}file-offset",
                type=click.IntRange(min=0),
                default=0,
                metavar="BYTES",
                help=f"Skip so many bytes of the key file{of}.",
            ),
            "size": option(
                f"{key}file-size",
                type=click.IntRange(min=1, max=luks.MAX_KEY_FILE_SIZE),
                metavar="BYTES",
                help=f"Take only so many bytes of the key file{of}.",
            ),
        },
    )


def opening_key_group() -> Group:
    """Return `key_group` for a volume that exists, whose header says what its key costs."""
    group = key_group()
    slow = option(
        "--allow-slow-keys",
        type=click.IntRange(min=1),
        default=1,
        metavar="FACTOR",
        help="Permit key derivations up to FACTOR times the usual limits of time and memory.",
    )
    return group._replace(members={**group.members, "slow_factor": slow})


def _key_source(**said: Any) -> KeySource:
    """Return what the options of `key_group` say; at most one may name a secret."""
    key = KeySource(**said, objects=click.get_current_context().meta.get(_OBJECTS, ()))
    if len(key.named) > 1:
        raise click.UsageError(
            "--key-file, --key-fd, --key-secret, --key-credential and --key-command"
            " exclude each other"
        )
    if (key.offset or key.size) and key.file is None and key.fd is None:
        raise click.UsageError("--keyfile-offset and --keyfile-size go with --key-file or --key-fd")
    return key


def _keep_objects(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
    context.meta[_OBJECTS] = value


#: Adds ``--object`` to a command, once: it defines secrets for all its `key_group`s.
object_option: Final = click.option(
    "--object",
    type=_ObjectType(),
    multiple=True,
    expose_value=False,
    callback=_keep_objects,
    metavar="secret,id=ID,...",
    help="Define a secret as QEMU's -object does. Repeatable.",
)


def key_options(function: Command) -> Command:
    """Add the options that name the secret of a volume; the command gets them as ``key``."""
    return object_option(taking("key", opening_key_group())(function))


def first_key_options(function: Command) -> Command:
    """Add those that name the secret of a volume to be made; it gets them as ``key``."""
    return object_option(taking("key", key_group())(function))


#: Adds those that name a passphrase to be set; the command gets them as ``new_key``.
new_key_options: Final = taking("new_key", key_group("new", " to set"))
