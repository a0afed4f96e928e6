"""The parts of EEPROM formats: checksums, padding, texts, typed resources.

A module is here if more than one format needs it, and is named for its subject and not
for its users. Each module is small and independent; formats take what they need, and no
part knows a format.

What must not happen here:

- No part holds the model of a format, or a rule of one: a part that finds a problem
  reports it by the rule that its codec names.
- No part serves a single format, unless it is one of a family, as checksums are.

Begin with any of them. In the order in which a codec uses them: `recognising` (whether
there is data of this format), `checksums`, `resources` (typed parts with lengths, as PCI
VPD and IBM's keyword VPD have them), `texts` (text and addresses in fixed places),
`ordering` (parts that are not stored in the usual order), `gaps` (pieces at offsets of their
own, and the bytes between them), `padding` (the bytes after the formatted part: the tail, and
fill bytes; E2) and `chips` (memory chips by name, and their sizes).
"""
