"""The FUSE protocol of the Linux kernel, without I/O.

The kernel sends requests through a descriptor of ``/dev/fuse``, one for each read, and takes
replies, one for each write: fixed structures in the byte order of the machine. This room turns
them into values and back, and knows neither descriptors nor files.

What must not happen here: no I/O, and no meaning. Which names there are, and what a write
does, is `blobstore.mount`'s.

Begin with `messages`, headers and opcodes; `requests` are the bodies of requests, `replies`
those of replies.

Source: ``include/uapi/linux/fuse.h`` of Linux, protocol 7.31 (Linux 5.4) and later.
"""
