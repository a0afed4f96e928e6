"""Bytes on devices and bytes in formats: devices, image files, the DER container.

No module here knows cryptography or the command line. Import the modules by name
(`formats.devices.device`, `formats.devices.file`, `formats.container.model`, ...).
"""

#: Identifies this `formats` as the one of `blobstore` and `luks` (spec/decisions/0001).
DISTRIBUTION = "device-blobstore"
