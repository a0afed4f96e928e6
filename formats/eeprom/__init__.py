"""Codecs of the data in EEPROMs: board descriptions, VPD, environments (``spec/eeprom.md``).

Each format is a module with frozen dataclasses as its model and one codec,
`CODEC`; `formats.eeprom.registry` finds them by name. `formats.eeprom.fields`
turns models into plain data, as manifests hold it, and back.
"""
