"""Secrets as QEMU defines them with ``-object secret``: their places and encodings.

    objects = SecretObjects([
        SecretObject.parse("secret,id=master,file=master.b64,format=base64"),
        SecretObject.parse("secret,id=sec0,keyid=master,iv=…,data=…,format=base64"),
    ])
    with objects.resolve("sec0") as secret:
        luks.open("disk.img", secret)

Sources: QEMU's documentation ("Providing secret data to QEMU"), and the behaviour of
qemu-img 10.0. Rules: S20 to S29 of ``spec/secrets.md``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from formats.logs import LateLogger
from luks.errors import SecretObjectError
from luks.secret.secret_codec import decode_base64, decrypt, require_text
from luks.secret.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable

_KIND: Final = "qom-type"
_KINDS: Final = {
    "secret": frozenset({"id", "data", "file", "format", "keyid", "iv"}),
    "secret_keyring": frozenset({"id", "serial", "format", "keyid", "iv"}),
}
_FORMATS: Final = ("raw", "base64")
_COMMA: Final = "write a comma that belongs to a value twice"
_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_FDSET: Final = re.compile(r"/dev/fdset/([0-9]{1,9})")
_KEY_SIZE: Final = 32

_log = LateLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretObject:
    """One definition; nothing is read before it is resolved.

    Attributes:
        id: The name by which others refer to it.
        data: The secret itself, in the encoding of ``format``; only for tests,
            unless it is encrypted.
        file: Path of the file that holds it; ``/dev/fdset/N`` is descriptor N.
        serial: Number of the key of the kernel's keyring that holds it.
        format: ``raw``, which is text, or ``base64``.
        keyid: Id of the secret that encrypts it with AES-256-CBC.
        iv: Of this encryption, in base64.

    Raises:
        SecretObjectError: They contradict each other.
    """

    id: str
    data: Secret | None = None
    file: str | None = None
    serial: int | None = None
    format: str = "raw"
    keyid: str | None = None
    iv: str | None = None

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise SecretObjectError(
                "the id of a secret must be a letter, then letters, digits, '-', '.' and '_' [S21]"
            )
        what = f"secret {self.id}"
        if (self.data, self.file, self.serial).count(None) != 2:
            raise SecretObjectError(f"{what} needs exactly one of data, file and serial [S22]")
        if self.format not in _FORMATS:
            raise SecretObjectError(f"{what}: the format must be raw or base64 [S23]")
        if self.keyid is None and self.iv is not None:
            raise SecretObjectError(f"{what} has an iv, but no keyid to use it with [S25]")
        if self.keyid is not None and self.iv is None:
            raise SecretObjectError(f"{what} has a keyid, but not the iv to decrypt it [S25]")

    @classmethod
    def parse(cls, definition: str) -> Self:
        """Read a definition as ``-object`` takes it, ``secret,id=…,file=…`` or JSON.

        ``definition`` may contain the secret, and the caller's copy is not wiped.

        Raises:
            SecretObjectError: It is not valid. The message quotes nothing that could
                be part of a secret, as a property name can be after a single comma.
        """
        values, fault = _properties(definition)
        del definition  # so that no traceback of an error below shows the secret
        if fault:
            raise SecretObjectError(f"the definition of a secret {fault} [S20]", hint=_COMMA)
        data = values.pop("data", None)
        given = {
            name: bytes(value.view()).decode(errors="surrogateescape")
            for name, value in values.items()
        }
        serial = given.get("serial")
        if serial is not None and not re.fullmatch("[0-9]{1,10}", serial):
            raise SecretObjectError("the serial of a secret must be a number [S24]")
        return cls(
            id=given.get("id", ""),
            data=data,
            file=given.get("file"),
            serial=None if serial is None else int(serial),
            format=given.get("format", "raw"),
            keyid=given.get("keyid"),
            iv=given.get("iv"),
        )


class SecretObjects:
    """Definitions that may refer to each other, in any order."""

    def __init__(self, objects: Iterable[SecretObject] = ()) -> None:
        """Take definitions.

        Raises:
            SecretObjectError: Two have the same id.
        """
        self._objects: dict[str, SecretObject] = {}
        for defined in objects:
            if defined.id in self._objects:
                raise SecretObjectError(f"two secrets have the id {defined.id!r} [S21]")
            self._objects[defined.id] = defined

    def resolve(self, secret_id: str) -> Secret:
        """Read a secret for use as a passphrase; the caller wipes it.

        Raises:
            SecretObjectError: The id is not defined, or an encryption needs itself.
            SecretFormatError: It does not match its definition: it is not base64,
                not text although raw, or not encrypted with that key.
            SecretRequiredError: It cannot be read.
            UnsupportedError: The kernel has no keyrings.
        """
        secret = self._load(secret_id, ())
        if self._objects[secret_id].format == "raw":
            require_text(secret, f"secret {secret_id}")
        return secret

    def _load(self, secret_id: str, needed_by: tuple[str, ...]) -> Secret:
        """Return the decoded and decrypted secret, text or not."""
        if secret_id in needed_by:
            raise SecretObjectError(f"secret {secret_id} is encrypted with itself [S25]")
        if secret_id not in self._objects:
            raise SecretObjectError(f"no secret has the id {secret_id!r} [S21]")
        defined = self._objects[secret_id]
        what = f"secret {secret_id}"
        secret = _read(defined)
        if defined.format == "base64":
            secret = decode_base64(secret, what)
        if defined.keyid is None or defined.iv is None:
            return secret
        with secret, self._load(defined.keyid, (*needed_by, secret_id)) as key:
            if len(key) != _KEY_SIZE:
                raise SecretObjectError(
                    f"secret {defined.keyid}, which decrypts {what}, has {len(key)} bytes,"
                    f" not {_KEY_SIZE} [S25]"
                )
            return decrypt(secret, key, defined.iv, what)


def _read(defined: SecretObject) -> Secret:
    """Return a copy of the stored bytes, still encoded."""
    if defined.data is not None:
        if defined.keyid is None:
            _log.warning(
                "secret %s is in the clear in its definition: others can read it",
                defined.id,
            )
        return Secret(defined.data.view())
    if defined.serial is not None:
        return Secret.from_keyring(defined.serial)
    assert defined.file is not None
    descriptor = _FDSET.fullmatch(defined.file)
    if descriptor:
        return Secret.from_fd(int(descriptor[1]))
    return Secret.from_file(defined.file)


# The functions below must not raise: their frames hold the secret in the clear, and
# a traceback may show them.


def _properties(definition: str) -> tuple[dict[str, Secret], str | None]:
    """Return the properties by name, with their values as `Secret`s, and the fault or None."""
    pairs = _json_pairs(definition) if definition.startswith("{") else _comma_pairs(definition)
    if pairs is None:
        return {}, "is not a JSON object of texts and numbers"
    kind = next((value for name, value in pairs if name == _KIND), None)
    if kind not in _KINDS:
        return {}, "must begin with 'secret' or 'secret_keyring'"
    values: dict[str, Secret] = {}
    for number, (name, value) in enumerate(pairs, 1):
        if value is None:
            return {}, f"has no '=' in part {number}"
        if name in values:
            return {}, f"repeats a property in part {number}"
        if name != _KIND and name not in _KINDS[kind]:
            allowed = ", ".join(sorted(_KINDS[kind]))
            return {}, f"has an unknown property in part {number}; a {kind} has {allowed}"
        try:
            values[name] = Secret(value.encode(errors="surrogateescape"))
        except UnicodeEncodeError:
            return {}, f"has no text in part {number}"
    return values, None


def _comma_pairs(definition: str) -> list[tuple[str, str | None]]:
    """Split at single commas; a double one stands for a comma, one at the end is ignored."""
    parts = [""]
    for number, piece in enumerate(definition.split(",,")):
        first, *others = piece.split(",")
        parts[-1] += f",{first}" if number else first
        parts += others
    if not parts[-1]:
        del parts[-1]
    pairs: list[tuple[str, str | None]] = []
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals and not pairs:
            name, equals, value = _KIND, "=", part
        pairs.append((name, value if equals else None))
    return pairs


def _json_pairs(definition: str) -> list[tuple[str, str | None]] | None:
    import json  # noqa: PLC0415  few definitions are JSON

    try:
        members = json.loads(definition, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return None
    if any(isinstance(value, bool) or not isinstance(value, str | int) for _, value in members):
        return None
    return [(name, str(value)) for name, value in members]
