"""qcow2 images: the disk in them as a BlockDevice, their snapshots, their repair.

Import the modules by name: `opening` and `creation` to begin with, then `device`,
`snapshots`, `check`, `repair` and `measure`. spec/qcow2.md has the rules.
"""
