"""The container: named blobs in a flat run of bytes, safe from power cuts.

The rules of ``spec/container.md`` are carried out in this room, sections 3 to 8 of it;
`formats.container` has the encoding of a single head. The room is given a `BlockDevice`
and does not know whether its bytes lie in a file, a qcow2 image, or a LUKS volume.

The idea is that **the heads say everything**. Each item begins with 512 bytes that
reach the medium whole or not at all; its blob follows. Opening reads the heads and
works out what the store holds. A change writes a new copy next to the one that
counts, with a single flush, so that at every instant one of the two is whole.

Three objects carry the room. `directory.Directory` is what the heads mean, in
memory. `durable.DurableWriter` is the only object that writes, in steps; it knows
which step is in doubt. `open_container.OpenContainer` holds both and the device, and
nearly every function here takes one as its first argument.

What must not happen here:

- No import of `luks`, of `formats.devices.file` or of a room above; a contract in
  ``pyproject.toml`` says so. The container is told what it lies in (C25).
- No write that does not go through the writer, and no change of the directory before
  the flush of what it describes has returned (C63).
- No answer from an older copy in the place of a newer one that does not verify (C45).
- No write around a damaged head, except by `repair` (C61).
- No locks: `OpenContainer` is for one thread at a time, and the store sees to that.

Begin with `directory`, which explains recovery, and then `commit`. The modules in the
order in which one reads them:

    reading     authentication  scan  sections  directory  open_container
                search  proving  (where heads are damaged)
    writing     durable  commit  headers  recovery
    telling     recent
    space       extents  placing  growth  compaction  initialise
    keys        reauthentication  protection
    inspecting  verification  scrub  regions, and the room `repair`
"""
