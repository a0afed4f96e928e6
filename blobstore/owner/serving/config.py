"""What `blobstore serve` is told: one value, from a file in TOML and from options (O123).

image = "machine.img"     # or the argument of the command

[store]                   # the store itself
path = "machine.sock"     # default: the image's entry in the runtime directory
mode = 0o660              # default: 0o600
group = "kvm"

[[nbd]]                   # sections as block devices
listen = "nbd.sock"       # or HOST:PORT at a loopback address
exports = ["uefi-variables"]  # default: all

[[tpm]]                   # a TPM, by swtpm's options
ctrl = "type=unixio,path=tpm.sock"

[[mount]]                 # sections as files
directory = "/run/machine/state"
"""

from __future__ import annotations

import inspect
import os
import re
import tomllib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blobstore.errors import ConfigError
from blobstore.mount.settings import MountSettings
from blobstore.owner.serving.mount_front import MountFront
from blobstore.owner.serving.nbd_front import NbdFront  # noqa: TC001  msgspec reads annotations
from blobstore.owner.serving.store_front import StoreFront
from blobstore.owner.serving.tpm_front import TpmFront  # noqa: TC001  likewise
from blobstore.sockets.addresses import UnixAddress, parse_address
from formats.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from blobstore.owner.serving.fronts import FrontConfig

#: Nothing that is meant to be a configuration is larger.
_MOST_BYTES: Final = 1 << 20


class ServeConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True
):
    """What is served. Each field but ``image`` is a kind of front.

    Attributes:
        image: Place of the image; None if the caller knows it.
        store: Where the store is served.
        nbd: Servers of NBD.
        tpm: TPMs.
        mount: Directories.
    """

    image: str | None = None
    store: StoreFront = StoreFront()
    nbd: tuple[NbdFront, ...] = ()
    tpm: tuple[TpmFront, ...] = ()
    mount: tuple[MountFront, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ArgumentError: Two fronts, or sockets of two, have one name.
        """
        known: dict[str, FrontConfig] = {}
        for front in self.fronts():
            for name in {front.name, *front.socket_names}:
                if not name or ":" in name:  # systemd's separator
                    raise ArgumentError(f"the name of a front must be a word, not {name!r}")
                if name in known:
                    raise ArgumentError(
                        f"two fronts, or sockets of two, are called {name!r}: give one another "
                        "name [O124]"
                    )
                known[name] = front

    def fronts(self) -> tuple[FrontConfig, ...]:
        """Return all fronts, in the order in which they begin."""
        return (self.store, *self.nbd, *self.tpm, *self.mount)

    def with_options(
        self,
        *,
        socket: str | os.PathLike[str] | None = None,
        mode: int | None = None,
        group: str | int | None = None,
        nbd: Sequence[NbdFront] = (),
        tpm: Sequence[TpmFront] = (),
        mount: Sequence[MountFront] = (),
    ) -> ServeConfig:
        """Return this with what options say in its place.

        Args:
            socket: Path of the store's socket.
            mode: Of that socket, and of those of ``nbd``.
            group: Likewise.
            nbd: Servers of NBD, instead of all that are said here.
            tpm: TPMs, likewise.
            mount: Directories, likewise.

        Raises:
            ArgumentError: It contradicts itself then.
        """
        access: dict[str, Any] = {}
        if mode is not None:
            access["mode"] = mode
        if group is not None:
            access["group"] = group
        where = {} if socket is None else {"path": os.fspath(socket)}
        fronts = self.nbd
        if nbd:
            fronts = tuple(
                msgspec.structs.replace(front, **access)
                if isinstance(parse_address(front.listen or ""), UnixAddress)
                else front
                for front in nbd
            )
        store = msgspec.structs.replace(self.store, **where, **access)
        return msgspec.structs.replace(
            self,
            store=store,
            nbd=fronts,
            tpm=tuple(tpm) or self.tpm,
            mount=tuple(mount) or self.mount,
        )


def load_serve_config(path: Path) -> ServeConfig:
    """Read a configuration from a file in TOML. Nothing else is looked at.

    Names of files in it start where the process runs.

    Raises:
        ConfigError: It cannot be read, or used.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path} has more than {_MOST_BYTES} bytes [O123]")
    try:
        tables = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or nested too deeply
        lines = content.count(b"\n") + 1
        message = str(error).replace("at end of document", f"at line {lines}, the last")
        raise ConfigError(f"{path} is not TOML: {message} [O123]") from error
    try:
        return msgspec.convert(tables, ServeConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_as_toml(str(error))} [O123]") from error


def serve_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a configuration."""
    (schema,), definitions = msgspec.json.schema_components(
        [ServeConfig], ref_template="#/$defs/{name}"
    )
    for name, definition in definitions.items():
        _describe(definition, MountSettings if name == MountFront.__name__ else None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of blobstore serve",
        **schema,
        "$defs": definitions,
    }


def _describe(definition: dict[str, Any], base: type | None) -> None:
    """Say of a table and its keys what the class, and its base, say of their attributes."""
    text, _, attributes = definition.pop("description").partition("\n\nAttributes:\n")
    definition["description"] = text
    if base is not None:
        attributes += f"\n{inspect.getdoc(base)}"
    for name, words in re.findall(r"^    (\w+): ((?:.|\n     )+)$", attributes, re.MULTILINE):
        definition["properties"][name.replace("_", "-")]["description"] = " ".join(words.split())


def _as_toml(message: str) -> str:
    """Say it in TOML's words: msgspec has JSON's, and `$` for the document."""
    for json, toml in (
        ("Object contains unknown field", "there is no key"),
        ("Expected `object`", "expected a table"),
        ("Expected `array`", "expected an array"),
        ("Expected `str | int | null`", "expected text or a whole number"),
        ("Expected `str | null`", "expected text"),
        ("Expected `str`", "expected text"),
        ("Expected `int`", "expected a whole number"),
        ("`$.", "`"),
        (" - at `$`", ""),
    ):
        message = message.replace(json, toml)
    return message
