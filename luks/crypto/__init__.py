"""Cryptography of LUKS: from names as dm-crypt spells them to bytes out of bytes.

A header names a cipher (``aes-xts-plain64``), a hash and a key derivation. This room
makes functions of these names: sector ciphers, hashes, derivations, and the
anti-forensic splitting of key material. It holds no header, no keyslot and no file;
keys come in, and bytes go out.

Nothing is implemented here that a kept library has. A cipher is put together from
three parts, each in a module of its own: the *block cipher*, from `cryptography` or,
for what that lacks, from libgcrypt or nettle; the *mode* over the blocks of a sector;
and the *IV generator*, from the sector's number. Sectors are numbered in units of 512
bytes, whatever their size (L50). Rules: L70, L71 (ciphers), L5 (splitting), L61
(limits of key derivations); what is odd about speed is in spec/decisions/0013.

What must not happen here:

- No key derivation starts before its cost was checked against limits: the cost comes
  from a header, which an attacker may have written (L61).
- No comparison of secrets with ``==``, and no copy of a key that outlives its use, as
  far as that is in our hands (``docs/secrets.md``).
- No null cipher, unless the caller permits it by name (L62).
- A library that is missing is an `UnsupportedError` that names its package. It is not
  looked for before it is needed.

Begin with `spec`, what a cipher string says, and `ciphers`, which puts sector ciphers
together. Then `blockcipher` with `gcrypt` and `nettle`, `modes` and `ivs`; then `hashes`,
`kdf` and `af`. The room `fast` does the same as the modes for many sectors at once.
"""
