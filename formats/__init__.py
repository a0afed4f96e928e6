"""Bytes on devices and bytes in formats: devices, image files, the DER container.

Nothing here knows cryptography or a command line. Import the modules by name
(`formats.device`, `formats.file`, `formats.container`, ...).
"""

#: Tells `blobstore` and `luks` that this `formats` is theirs (spec/decisions/0001).
DISTRIBUTION = "device-blobstore"
