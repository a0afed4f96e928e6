"""UEFI variables opened up: what is in the flash that edk2 keeps them in.

A flash is a firmware volume with three parts: the *store*, a log of records, one for each
variable that was ever set; the *work area*, in which edk2's driver of fault-tolerant writes
notes what it is doing; and the *spare area*, to which that driver copies blocks before it
erases them. Firmware clears bits and never sets them, except by erasing a block. A record is
there when its state says so, and a variable is changed by a new record and a state of the old
one. When the store is full, its live records are written to the spare area, then to the store.
Rules: F30 to F42 of ``spec/foreign-state.md``, with the sources they were taken from.

The room is as pure as `formats.state`: bytes to values and back. `blobstore.foreign.variables`
has the changes of users, `blobstore.foreign.certificates` the certificates and signatures.

What must not happen here:

- A variable that firmware can read is never lost or changed by a repair, and one that
  firmware cannot read is never shown as if it could.
- A write that firmware would finish at its next start is finished here first: otherwise it
  would overwrite what is edited.
- Nothing is believed of lengths, states and offsets in a flash: a guest may have written it.

Begin with `flash`, which reads, writes and repairs the whole; `records` is the store and
`fault_tolerant` the other two areas. `names` knows the variables of the UEFI specification,
`values` decodes and encodes their data, with `boot` and `device_path` for boot entries and
`signatures` for Secure Boot. `flaws` is what is reported.
"""
