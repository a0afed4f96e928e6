"""Codecs of the data in EEPROMs: board descriptions, VPD, environments (``spec/eeprom.md``).

Each format is a module with frozen dataclasses as its model and one codec, `CODEC`:
bytes to model, and model to bytes. Everything else about a format follows from the
annotations of its model: its limits, its fields in manifests and JSON, its schema, and
the messages about what is wrong (spec/decisions/0014).

Rules E1 to E6 hold for all formats. Bytes that can be decoded are encoded to the same
bytes again. Content that a reader of the format would reject is refused; content that it
would skip is kept (spec/decisions/0017). Rules of one format carry its letters, such as E-SL1.

What must not happen here:

- A format does no I/O, consults no registry of outside facts and imports no other format:
  what two formats share is in `parts`.
- A model has no field for a checksum, length or count: they are checked when reading and
  computed when writing (E4).
- No input takes more than time proportional to its size (E5), and none raises any error
  except `FormatError` and `UnsupportedError`.

Begin with `framework.codec`, the contract of a codec, and ``sl28_vpd``, the shortest one. The
room `framework` turns models into plain data and back; `parts` has what several formats
share. The formats are ``edid``, ``google_vpd``, ``intel_nic``, ``ipmi_fru``,
``keyword_vpd``, ``onie_tlv``, ``pci_vpd``, ``raw``, ``rpi_hat``, ``sl28_vpd``, ``spd`` and
``uboot_env``; modules whose names continue one of these are parts of it (``fru_…`` are
those of ``ipmi_fru``). ``framework/registry.py`` lists them by the type of their sections.
"""
