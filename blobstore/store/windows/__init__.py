"""Windows: sections as block devices, for devices that write like disks (C62).

A put replaces a whole blob. The emulator of a flash chip or a disk wants to write a
few bytes anywhere, and flush now and then. A window gives it a `BlockDevice` over one
section, in one of two ways:

- **buffered**: writes go to memory, and a flush commits the whole content as any put
  does. Only blocks that differ from the older copy are written, and only if that
  copy is known, byte for byte (`writer`). Every flush is atomic.
- **in place**: both copies are made equal, then one of them is marked `inPlace` and
  written directly. It is as fast as a disk and no more atomic than one: after a crash
  the content is a mixture, and is called unverified.

What must not happen here:

- No block of a buffered window is left out on the assumption that it is there. What
  is known of the older copy is what this process verified or wrote since it opened
  the store; after a commit that failed nothing is known.
- Nothing is written to a copy in place before the commit that marks it is durable.
- A window that is in place must not hold the only good copy: the other one keeps what
  was there when the window began.
- After a failed write or flush nothing more is written (C51).

Begin with `window`, what both kinds have in common; then read `buffered` and `in_place`,
and `opening`, which chooses between them. `differing` makes the commits that write only
what differs, `checksum` has the crc32 of what changed in part, `alarm` commits buffered
writes that are not flushed, and `sharing` lets several users have one window.
"""
