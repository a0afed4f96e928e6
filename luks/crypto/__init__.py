"""Cryptography of LUKS: functions for the names that dm-crypt uses.

A header names a cipher (``aes-xts-plain64``), a hash and a key derivation. This room
turns these names into functions: sector ciphers, hashes, derivations, and the
anti-forensic splitting of key material. It knows no header, no keyslot and no file;
it takes keys and bytes, and returns bytes.

It implements nothing that a maintained library offers. A cipher is composed of three
parts, each in its own module: the *block cipher*, from `cryptography` or, if that lacks
it, from libgcrypt or nettle; the *mode* over the blocks of a sector; and the *IV
generator*, which uses the sector's number. Sectors are numbered in units of 512 bytes,
regardless of their size (L50). Rules: L70, L71 (ciphers), L5 (splitting), L61 (limits of
key derivations); spec/decisions/0013 explains unusual code for speed.

What must not happen here:

- No key derivation starts before its cost was checked against limits: the cost comes
  from a header, which an attacker may have written (L61).
- No secrets are compared with ``==``, and no copy of a key outlives its use, as far as
  Python permits (``docs/secrets.md``).
- No null cipher is used, unless the caller permits it by name (L62).
- No library is looked for before it is needed. A missing one is an `UnsupportedError`
  that names its package.

Begin with `spec`, which parses cipher strings, and `ciphers`, which composes sector
ciphers. Then read `blockcipher` with `gcrypt` and `nettle`, `modes` and `ivs`; then
`hashes`, `kdf` and `af`. The room `fast` does the work of the modes for many sectors at
once.
"""
