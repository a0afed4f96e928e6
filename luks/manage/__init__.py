"""What users do with volumes: keys, tokens, labels, backups, detached headers.

Each function here is a task as a user would name it, and each has one shape: load the
header, unlock with what was given, change the header in memory, and have
`luks.header.writer` make the new one durable. A set of changes is one edit: it
happens as a whole or not at all, and a crash leaves a header with a passphrase that
opens it (L91). Rules: L91, L95, L100 to L103 (amending), L110 to L114 (backups and
destroying keys), L120, L121 (moving headers), L125 and following (tokens), L200 to L206
(from one version of LUKS to the other).

What must not happen here:

- No writing but through `luks.header.writer` and `luks.header.version_switch`. A LUKS1 header
  cannot be replaced at once, so that its order of steps (L92, L113) is the writer's as well.
- The last keyslot that opens a volume is removed only if the caller says so (L95).
- A keyslot area that the header on the device still refers to is not overwritten (L10).
- The header of another volume is not restored over this one without consent (L111).
- What cannot be done as it is asked for is an `ArgumentError` before anything is written.

Begin with `editing`, which everything else uses, and `changes`, the changes as
functions from header to header. `one_keyslot` has the edits of one change each,
`amending` those by target state, as QEMU names them. `backup`, `restore` and `move` are
about headers as a whole, and `converting` changes their version; `tokens` is about where
passphrases are; `dump` shows a header.
"""
