"""Bytes on devices and bytes in formats: devices, image files, the DER container.

No module here knows cryptography or the command line. Import the modules by name
(`formats.devices.device`, `formats.devices.file`, `formats.container.model`, ...).
"""

#: Tells `blobstore` and `luks` that this `formats` is theirs (spec/decisions/0001).
DISTRIBUTION = "device-blobstore"
