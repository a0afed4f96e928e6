"""qcow2 images: the disk in them as a BlockDevice, their snapshots, their repair.

    with FileDevice(path, read_only=False) as file:
        create(file, 64 << 20)                             # formats.qcow2.creation
        with open_image(file, read_only=False) as disk:    # formats.qcow2.opening
            disk.write(0, b"hello")
            disk.flush()
            disk.rewrite(lambda device: create_snapshot(device, "name"))

Import the modules by name: `opening` and `creation` to begin with, then `device`,
`snapshots`, `check`, `repair`, `measure` and `preallocation`. A disk that is
encrypted is opened with what `luks` makes of the header in `opening.luks_area`.
spec/qcow2.md has the rules.
"""
