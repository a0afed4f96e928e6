"""The image room: what lies between a place and a payload.

A payload is a `BlockDevice` with a container, or anything else, in it. Around it lie
up to three layers: the file, block device or device of another machine, the disk of a
qcow2 image, and a LUKS volume. Opening an image peels them off, making one puts them on.
This is the only room of `blobstore` that knows in which order they come, which of them
there are, and where a LUKS header is (attached, detached, or beside the disk of a qcow2
image), so that another kind of place, or another layer, is work in this room only.

Rules: C25 (what is encrypted must say so; `blobstore.store.reliance` decides), section
1 of ``spec/qcow2.md`` for Q7, L4 of ``spec/luks.md`` for detached headers, P10 to P19 of
``spec/places.md`` for devices of other machines.

What must not happen here:

- The payload is not interpreted. The one question asked of it is whether a container
  begins there (`blobstore.container.scan.looks_like_container`), so that no image
  with a store in it is taken for empty.
- No layer is left open when a later one fails, and none is closed before the one
  that lies in it.
- A secret is passed on to `luks` and nowhere else. It is not kept.
- What exists is not overwritten unless the caller says so, and a new image appears
  under its name when it is whole. On a device it holds no store until the last write.
- A text becomes a place once, with `place_of`; `Path` of one that is not a file's loses a
  slash. What is only possible with files says so (P16), and does not make one.

Begin with `place`: where an image lies, where its owner would be, and `open_place`, the one
function that opens what a path or text names. Then `layers`: opening, and the diagram of all
combinations. Then `creation` (making images: what a new one is to be, and in which order making
is undone), `qcow2` (disks of qcow2 images, and the encryption that qcow2 has of its own),
`luks_header` (where the header of an image is, and moving it), `disks` (check, repair, measure
and snapshots of a whole qcow2 image), `snapshot_devices` (raw images whose device keeps
snapshots), `image` (what a store lies in), `info` (that as plain values) and `regions` (what each
byte of it is for). `opened` does things to an image while its store is open, `owners` names the
process that has it. `handover` asks an image again that another process had meanwhile (C65),
`moving` is a payload that is re-encrypted while it is used (O210). `markers` says what must not
be opened at all (P41, P46), and `fencing` whether a process that had an image can still write to
it (P50). `files` reads and makes whole files for the rooms above, and `small_disks` the disks of
small qcow2 images. The room `remote` has devices that are not files of this machine.
"""
