"""Keyslots: from a secret to the volume key, and back.

A keyslot holds the volume key, split into anti-forensic stripes and encrypted with a key
that is derived from a passphrase. Unlocking derives that key, decrypts, merges the
stripes, and asks the header's digest whether the result is the volume key. Adding a
keyslot goes the other way. Rules: L5 to L7 (what is made), L61 (what a header may ask
for), L63 and L64 (which keyslots are tried, and what a failure means).

What must not happen here:

- A key that no digest has confirmed is a *candidate* and is called one; it leaves this
  room as a `VolumeKey` only after the digest has confirmed it. A wrong passphrase also
yields a key.
  - A failure is not reported as more than can be known: a wrong secret and damaged key
material look the same (L64).
  - No keyslot is written to a device here. `enroll` returns a changed header and key
material in memory; `luks.header.writer` makes both durable, the material first (L10).
- No keyslot is replaced in place: a new one gets an area that nothing refers to.
- Candidates, derived keys and merged material are never left unwiped, even on errors (S3).

Begin with `keyslots`: `unlock`, and `seal` for the way back. `reencryption` has the two
keys of a volume that is being re-encrypted, and what proves that (L180 to L182). Then
`enroll` (adding a keyslot to a header in memory: which number, which area), `costs` (the
cost of a new derivation: given or measured, and never below the minimum), `benchmark`,
which measures, and `throughput`, which shows users the speed of their machine.
"""
