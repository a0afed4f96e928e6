"""Block devices: the one seam of the project, and the devices at its bottom.

Everything that stores bytes is a `BlockDevice`: a file, memory, a slice of another
device, the disk of a qcow2 image, the payload of a LUKS volume, a window into a section.
Each layer takes one and may be one, so that they can be stacked in any order and tested
without files.

The contract, which one test suite checks for all of them (tests/conformance):

- Offsets and sizes are bytes, without alignment. A request is carried out exactly, or it
  raises; nothing is ever short. A request outside the device is a `ValueError`.
- A write is durable when a later `flush` has returned. Before that, its 512-byte sectors
  reach the medium in any order, or not at all.
- After a flush that failed, nothing is known of what was written before it. A flush that
  succeeds afterwards proves nothing: the system may have dropped what it could not store.
- What the operating system reports is a `DeviceError` with the `OSError` as its cause.

What must not happen here:

- No format is known; a device is bytes.
- No image is opened without the lock that its caller asked for, and none is opened
  elsewhere: `file` is the only module that opens image files and block devices.
- A new file does not appear under its name before it is whole, and is not called
  durable before its directory was flushed.

Begin with `device`, the protocol and the devices that need no file. `file` has files and
block devices, `new_file` makes files that appear whole, and `identity` says whether two
names are of one; `locks` has the locks that QEMU and we take, and `holes`
what Linux knows about space that files do not occupy. `steady` reads what another
process may be writing, without a lock (C66).
"""
