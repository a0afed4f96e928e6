"""UEFI variables opened up (F30 to F43): flashes, values, keys, and firmware as the judge."""
