"""qcow2 images: the disk in them as a `BlockDevice`, their snapshots, their repair.

    with FileDevice(path, read_only=False) as file:
        create(file, 64 << 20)                             # formats.qcow2.creation
        with open_image(file, read_only=False) as disk:    # formats.qcow2.opening
            disk.write(0, b"hello")
            disk.flush()
            disk.rewrite(lambda device: create_snapshot(device, "name"))

An image is a device of clusters. Two levels of tables say where each cluster of the disk
lies, and a count for each cluster of the image says how often it is used. The rules
are in ``spec/qcow2.md``. The theory of this room is the order in which changes reach the
medium, and there are two orders:

- **Writing data** (Q11 to Q14): counts go up, then data, then tables refer to it, then
  counts go down, with flushes between. A crash leaks clusters, and nothing else.
- **Changing many tables at once**, for snapshots and repair (Q10): new tables and new
  counts go into free clusters, and one write of the header's sector switches to them
  (spec/decisions/0021).

What must not happen here:

- No cluster is written to while the medium may still refer to it as something else.
- No image with an unknown incompatible feature is opened (Q4), and no reference to a
  cluster or table outside the image is followed (Q9).
- No module here does cryptography: an encrypted disk is opened with a cipher that the
  caller makes from the header in `opening.luks_area` (Q7).
- No backing file is opened except by the opener that the caller passes (Q6).

Begin with `opening`, `creation` and `device`. Reading: `header`, `features`, `extensions`,
`tables`, `mapping`, `ranges`, `content`, `compression`, `zstd`, `files`. Writing:
`writing`, `metadata`, `refcounts`, `counts`, `in_use`, `host`, `resizing`,
`preallocation`. As a whole: `rewrite`, `snapshots`, `snapshot_table`, `check`, `report`,
`lost`, `sparse`, `repair`, `bitmaps`, `difference`, `measure`.
"""
