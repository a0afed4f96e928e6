"""The options that say where a secret is, and reading it from there.

A secret comes from one of these, or from the terminal; never from an argument,
which everybody could read.
"""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from luks.secret.secrets import MAX_KEY_FILE_SIZE, Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from luks import SecretObject

    _Command = Callable[..., Any]

#: A file or device that a command reads or writes.
PATH = click.Path(path_type=Path)

_STDIN: Final = 0


class KeySource(NamedTuple):
    """What the options of `key_options` say.

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
    """

    file: Path | None = None
    fd: int | None = None
    secret_id: str | None = None
    credential: str | None = None
    command: str | None = None
    offset: int = 0
    size: int | None = None
    objects: tuple[SecretObject, ...] = ()
    held: Secret | None = None

    def require_sense(self) -> None:
        """Refuse options that do not go together; else at most one names a secret."""
        if self._named.count(None) < len(self._named) - 1:
            raise click.UsageError(
                "--key-file, --key-fd, --key-secret, --key-credential and --key-command"
                " exclude each other"
            )
        if (self.offset or self.size) and self.file is None and self.fd is None:
            raise click.UsageError(
                "--keyfile-offset and --keyfile-size go with --key-file or --key-fd"
            )

    @property
    def _named(self) -> tuple[object, ...]:
        return (self.file, self.fd, self.secret_id, self.credential, self.command)

    @property
    def is_named(self) -> bool:
        """Whether there is a secret; if not, the terminal is asked."""
        return self._named.count(None) < len(self._named)

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

    def read(self) -> Secret | None:
        """Return the secret, which is the caller's to wipe, or None if none is named."""
        if self.held is not None:
            return Secret(self.held.view())
        if self.fd is not None or self.is_stdin:
            fd = _STDIN if self.fd is None else self.fd
            return Secret.from_fd(fd, offset=self.offset, size=self.size)
        if self.file is not None:
            return Secret.from_file(self.file, offset=self.offset, size=self.size)
        if self.secret_id is not None:
            from luks import SecretObjects  # noqa: PLC0415  rarely used

            return SecretObjects(self.objects).resolve(self.secret_id)
        if self.credential is not None:
            return Secret.from_credential(self.credential)
        if self.command is None:
            return None
        try:
            command = shlex.split(self.command)
        except ValueError as error:
            raise click.UsageError(f"--key-command: {error}") from error
        import signal  # noqa: PLC0415  few run commands

        # Whoever started us may have ignored it: then nobody sees a command fail.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return Secret.from_command(command)


class _ObjectType(click.ParamType["SecretObject"]):
    """``secret,id=ID,…`` as QEMU's ``-object`` takes it."""

    name = "object"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> SecretObject:
        from luks import SecretObject  # noqa: PLC0415  rarely used

        del param, ctx
        # What is wrong with it has an exit code of its own.
        return value if isinstance(value, SecretObject) else SecretObject.parse(value)


def key_options(whose: str = "", of: str | None = None) -> Callable[[_Command], _Command]:
    """Add options that name a secret; the function gets them as ``key``, a `KeySource`.

    Args:
        whose: A word before their names, such as ``new``: ``--new-key-file``, and
            ``new_key``. Objects are defined once in a command, by the options
            without such a word, which must be there, too.
        of: What the help says of the passphrase; by default whose image it is of.
    """
    prefix = f"{whose}-" if whose else ""
    if of is None:
        of = f" of the {whose} image" if whose else ""
    names = {
        "file": f"{prefix}key-file",
        "fd": f"{prefix}key-fd",
        "secret_id": f"{prefix}key-secret",
        "credential": f"{prefix}key-credential",
        "command": f"{prefix}key-command",
        "offset": f"{prefix}keyfile-offset",
        "size": f"{prefix}keyfile-size",
    }
    key_name = f"{whose}_key" if whose else "key"
    parameters = {field: name.replace("-", "_") for field, name in names.items()}

    def decorate(function: _Command) -> _Command:
        @functools.wraps(function)
        def with_key(**arguments: Any) -> Any:
            said = {field: arguments.pop(name) for field, name in parameters.items()}
            if not whose:
                del arguments["objects"]
            objects = click.get_current_context().params["objects"]
            key = KeySource(**said, objects=objects)
            key.require_sense()
            arguments[key_name] = key
            return function(**arguments)

        command: _Command = with_key
        options = _options(names, of)
        if not whose:
            options.append(_OBJECT)
        for option in options:
            command = option(command)
        return command

    return decorate


_OBJECT: Final[Callable[[_Command], _Command]] = click.option(
    "--object",
    "objects",
    type=_ObjectType(),
    multiple=True,
    metavar="secret,id=ID,...",
    help="Define a secret as QEMU's -object does. Repeatable.",
)


def _options(names: dict[str, str], of: str) -> list[Callable[[_Command], _Command]]:
    """Return the options; the last one added comes first in the help."""
    return [
        click.option(
            f"--{names['size']}",
            type=click.IntRange(min=1, max=MAX_KEY_FILE_SIZE),
            metavar="BYTES",
            help=f"Take only so many bytes of the key file{of}.",
        ),
        click.option(
            f"--{names['offset']}",
            type=click.IntRange(min=0),
            default=0,
            metavar="BYTES",
            help=f"Skip so many bytes of the key file{of}.",
        ),
        click.option(
            f"--{names['command']}",
            metavar="COMMAND",
            help=f"Run this, without a shell; what it prints is the passphrase{of}.",
        ),
        click.option(
            f"--{names['credential']}",
            metavar="NAME",
            help=f"Take the passphrase{of} from this systemd credential.",
        ),
        click.option(
            f"--{names['secret_id']}",
            metavar="ID",
            help=f"Take the passphrase{of} from this --object.",
        ),
        click.option(
            f"--{names['fd']}",
            type=click.IntRange(min=0),
            metavar="N",
            help=f"Take the passphrase{of} from this descriptor.",
        ),
        click.option(
            f"--{names['file']}",
            type=PATH,
            metavar="FILE",
            help=f"Take the passphrase{of} from this file; - is stdin.",
        ),
    ]
