"""LUKS headers: reading them, judging them, and writing them crash-safely.

A header describes how the payload is encrypted and holds the key, encrypted with
passphrases, in its keyslot areas. LUKS1 has one header, LUKS2 two copies of one.
Everywhere else in `luks` a header is a value of `luks.model`; only this room knows its
bytes. Rules: L1 to L6 and L10 to L14 (what is written, in which order), L20 to L32 and
L40 to L44 (what is accepted), L90 to L96 of ``spec/luks.md``.

A header is judged three times. Decoding checks syntax and types. `validate` checks
sense: bounds, overlaps, references. `policy` then decides whether a sound header may be
*used*, because nothing in it is authentic: it could ask for no encryption, or for a
terabyte of memory (L60 to L62, L93). All three happen before a key derivation starts.

What must not happen here:

- No module except `writer`, and `version_switch` where LUKS1 becomes LUKS2 or the reverse, writes
  a header. `writer` writes key material before the header
  that refers to it, and one copy while the other one is valid (L10, L11).
- Reading repairs nothing, and waits for no lock.
- Unknown members, objects and token types are not lost: they are written as they were
  read (L32).
- No secret is handled: `luks.keys` uses passphrases.

Begin with `load` (which format, which copy) and `writer` (the order of writes, and why).
The formats: `luks1`; `luks2` with `luks2_binary`, `luks2_json`, `luks2_objects` and
`luks2_reencrypt_rules`; `text` is common to both. Judging: `validate`, `policy`, `key_digests`. New
headers: `layout`. Around them: `detection`, `other_signatures`, `lock`, `repair_copy`.
From one version to the other (L200 to L206): `versions`, `places`, `version_switch`.
"""
