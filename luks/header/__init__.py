"""What a LUKS header is: reading it, judging it, and writing it so that it survives.

A header says how the payload is encrypted and holds the key, encrypted with
passphrases, in its keyslot areas. LUKS1 has one header, LUKS2 two copies of one.
Everywhere else in `luks` a header is a value of `luks.model`; only this room knows its
bytes. Rules: L1 to L6 and L10 to L14 (what is written, in which order), L20 to L32 and
L40 to L44 (what is accepted), L90 to L96 of ``spec/luks.md``.

A header is judged three times. Decoding checks syntax and types. `validate` checks
sense: bounds, overlaps, references. `policy` then decides whether a sound header may be
*used*, because nothing in it is authentic: it could ask for no encryption, or for a
terabyte of memory (L60 to L62, L93). All of that comes before a key derivation starts.

What must not happen here:

- Nothing but `writer` writes a header. It writes key material before the header that
  refers to it, and one copy while the other one is valid (L10, L11).
- Reading repairs nothing, and waits for no lock.
- Nothing that is not understood is lost: unknown members, objects and token types are
  written as they were read (L32).
- No secret: what a passphrase opens is the business of `luks.keys`.

Begin with `load` (which format, which copy) and `writer` (in which order, and why).
The formats: `luks1`; `luks2` with `luks2_binary`, `luks2_json`, `luks2_objects` and
`luks2_reencrypt_rules`; `text` is common to both. Judging: `validate`, `policy`. New
headers: `layout`. Around them: `detection`, `other_signatures`, `lock`, `repair_copy`.
"""
