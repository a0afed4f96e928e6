"""The payload: a volume as a `BlockDevice`, and how a new one is made.

An open volume reads and writes any bytes; the sectors are decrypted and encrypted
on the way. The payload may consist of several segments, each with a cipher and a sector
size of its own; in the middle of a re-encryption also with a key of its own (L180).
Rules: L50 and L51 (sectors and segments), L72 (writes that cover parts
of sectors), L73 (resizing), L74 (discarding), L13, L14 and L6 for making volumes.

What must not happen here:

- A volume is not opened before its header passed `luks.header.policy`, and a payload of
  which a part is not encrypted is not opened at all (L60, L62).
- A reader never sees half of a sector that is being written by another thread (L72).
- Nothing about keyslots is decided here: the room is given a `VolumeKey`.
- Formatting does not destroy what it was not told to destroy: a device that is not empty
  or blank is refused, and a LUKS header on it needs consent of its own (L14).
- A crash while formatting leaves no header that seems whole (L12, L13).

Begin with `opening`, then `volume`: `Volume`, which joins segments. `segment` is one
encrypted segment: any byte range over whole sectors. `creation` makes volumes; `options`
is the frozen value that says how, and is checked before anything is opened; `profiles`
has what cryptsetup and QEMU choose when they make one.
"""
