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
- After a failed flush, the state of everything written before it is unknown. A later
  successful flush proves nothing: the system may have dropped the data it could not store.
- An error of the operating system becomes a `DeviceError` with the `OSError` as its cause.

What must not happen here:

- A device knows no format; it holds bytes.
- No image is opened without the lock that its caller asked for. No other module opens
  image files or block devices: only `file` does.
- A new file does not appear under its name before it is complete, and is not called
  durable before its directory was flushed.

Begin with `device`, the protocol and the devices that need no file. `file` has files and
block devices, `new_file` makes files that appear complete or not at all, and `identity`
says whether two names lead to one file; `locks` has the locks that QEMU and this project
take, and `holes` the system calls for space that files do not occupy. `steady` reads an
image without a lock while another process may be writing it (C66).
"""
