"""swtpm's encryption of TPM state: keys, and both directions (F10, F11).

It is there for what swtpm's users have: the store's own protection is LUKS and
the MACs of its records. The rules are those of ``spec/foreign-state.md``.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from typing import TYPE_CHECKING, ClassVar, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from blobstore.errors import StateAuthenticationError
from formats.errors import FormatError
from formats.state.swtpm import EncryptedState, PlainState
from luks import SecretRequiredError
from luks.secret.secrets import view_of

if TYPE_CHECKING:
    from luks import Secret

#: Mode of swtpm's ``--key`` to the size of its key in bytes.
_KEY_SIZES: Final = {"aes-cbc": 16, "aes-256-cbc": 32}

_SALT: Final = b"swtpm"
_ITERATIONS: Final = 1000
_IV_SIZE: Final = 16
_DIGEST_SIZE: Final = 32  # of SHA-256, in bytes
_HEX: Final = re.compile(rb"(?:0x)?((?:[0-9a-fA-F]{2})+)(?:\s.*)?", re.DOTALL)


class StateKey:
    """The key of an encrypted TPM state, as given to swtpm's ``--key``.

    It holds the secret it was made of, which stays its maker's to wipe.

    Attributes:
        MODES: swtpm's names of the encryptions.
        FORMATS: What a key file may hold; the first is the default.
        DERIVATIONS: How a key is made of a passphrase; the first is the default.
    """

    MODES: ClassVar = tuple(_KEY_SIZES)
    FORMATS: ClassVar = ("hex", "binary")
    DERIVATIONS: ClassVar = ("pbkdf2", "sha512")

    __slots__ = ("_mode", "_secret", "_source")

    def __init__(
        self, secret: bytes | Secret, source: str = "hex", mode: str | None = None
    ) -> None:
        """Take what a key file or a passphrase file holds (F11).

        Args:
            secret: The whole content of the file.
            source: ``"hex"`` or ``"binary"`` for a key, ``"pbkdf2"`` or
                ``"sha512"`` for a passphrase a key is derived from.
            mode: ``"aes-cbc"`` or ``"aes-256-cbc"``; None is what the state to
                be read or the size of the key says, for what remains the first.

        Raises:
            ValueError: There is no such source or mode.
        """
        if source not in (*self.FORMATS, *self.DERIVATIONS):
            raise ValueError(f"a state's key cannot be made of {source!r}")
        if mode is not None and mode not in self.MODES:
            raise ValueError(f"swtpm has no encryption {mode!r}")
        self._secret, self._source, self._mode = secret, source, mode

    def __repr__(self) -> str:
        return "<StateKey>"

    def parts(self) -> tuple[bytes, str, str | None]:
        """Return what makes the same key again, its secret included: arguments of the class."""
        return bytes(view_of(self._secret)), self._source, self._mode

    def encrypt(self, state: PlainState) -> EncryptedState:
        """Encrypt a state, with a random IV (F10).

        Raises:
            SecretRequiredError: There is no key in what was given.
        """
        key = self._derive(None)
        iv = os.urandom(len(key))
        padding = len(key) - len(state.data) % len(key)
        padded = state.data + bytes([padding]) * padding
        encryptor = _cipher(key, iv).encryptor()
        ciphertext = encryptor.update(padded) + encryptor.finalize()
        return EncryptedState(ciphertext, _mac(key, ciphertext, iv), iv, len(key))

    def decrypt(self, state: EncryptedState) -> PlainState:
        """Verify and decrypt a state (F10).

        Raises:
            StateAuthenticationError: The key is another one, or the state is
                damaged: the two cannot be told apart.
            FormatError: It verifies, but swtpm never wrote it.
            SecretRequiredError: There is no key in what was given.
        """
        key = self._derive(state.key_size)
        if len(key) != state.key_size:
            raise StateAuthenticationError(
                f"the TPM state is encrypted by a key of {state.key_size * 8} bits, and the one "
                f"given has {len(key) * 8}"
            )
        if not hmac.compare_digest(_mac(key, state.ciphertext, state.iv), state.mac):
            raise _does_not_verify()
        data = _decrypted(key, state.iv, state.ciphertext)
        if data is None:
            raise FormatError("an encrypted TPM state has wrong padding", rule="F10")
        if not data:
            raise FormatError("a TPM state without data", rule="F9")
        return PlainState(data)

    def decrypt_older(self, ciphertext: bytes) -> PlainState:
        """Decrypt and verify a state of before swtpm had fields (F23).

        Args:
            ciphertext: Not empty.

        Raises:
            StateAuthenticationError: As `decrypt`.
            FormatError: It verifies, and has no data.
            SecretRequiredError: There is no key in what was given.
        """
        key = self._derive(None)
        data = None
        if len(ciphertext) % len(key) == 0:
            data = _decrypted(key, bytes(_IV_SIZE), ciphertext)
        digest, content = (data or b"")[:_DIGEST_SIZE], (data or b"")[_DIGEST_SIZE:]
        if not hmac.compare_digest(hashlib.sha256(content).digest(), digest):
            raise _does_not_verify()
        if not content:
            raise FormatError("a TPM state without data", rule="F23")
        return PlainState(content)

    def _derive(self, wanted: int | None) -> bytes:
        """Return the key; ``wanted`` bytes of it where nothing else says how many."""
        size = _KEY_SIZES[self._mode] if self._mode else None
        secret = bytes(view_of(self._secret))
        if self._source in self.DERIVATIONS:
            if not secret:
                raise SecretRequiredError("the passphrase of the TPM state is empty")
            if self._source == "pbkdf2":
                derived = hashlib.pbkdf2_hmac("sha512", secret, _SALT, _ITERATIONS)
            else:
                derived = hashlib.sha512(secret).digest()
            return derived[: size or wanted or _KEY_SIZES["aes-cbc"]]
        if self._source == "hex":
            match = _HEX.fullmatch(secret)
            secret = bytes.fromhex(match[1].decode()) if match else b""
        sizes = (size,) if size else tuple(_KEY_SIZES.values())
        if len(secret) not in sizes:
            text = " or ".join(str(8 * size) for size in sizes)
            raise SecretRequiredError(
                f"the key file of the TPM state does not hold a key of {text} bits",
                hint=f"it was read as {self._source}",
            )
        return secret


def _cipher(key: bytes, iv: bytes) -> Cipher[modes.CBC]:
    return Cipher(algorithms.AES(key), modes.CBC(iv[:_IV_SIZE]))


def _decrypted(key: bytes, iv: bytes, ciphertext: bytes) -> bytes | None:
    """Return what was encrypted, or None if its padding is wrong (F10)."""
    decryptor = _cipher(key, iv).decryptor()
    padded = decryptor.update(ciphertext) + decryptor.finalize()
    padding = padded[-1]
    if not 1 <= padding <= len(key) or padded[-padding:] != bytes([padding]) * padding:
        return None
    return padded[:-padding]


def _does_not_verify() -> StateAuthenticationError:
    return StateAuthenticationError(
        "the encrypted TPM state does not verify: the key is another one, or the state is damaged"
    )


def _mac(key: bytes, ciphertext: bytes, iv: bytes) -> bytes:
    return hmac.digest(key, ciphertext + iv, "sha256")
