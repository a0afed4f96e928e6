"""What EEPROM formats are made of: checksums, padding, texts, typed resources.

A thing is here if more than one format has it, and it is here by what it is, not by who
uses it. Each module is small and stands for itself; formats take what they need, and
none of these knows a format.

What must not happen here:

- No model of a format, and no rule of one: a part that finds something wrong reports
  it by the rule that its codec names.
- Nothing that a single format needs, unless it is one of a family, as checksums are.

Begin with any of them. In the order in which a codec uses them: `recognising` (is there
data of this format at all), `checksums`, `resources` (typed parts with lengths, as PCI
VPD and IBM's keyword VPD have them), `texts` (text and addresses in fixed places),
`ordering` (parts that are not stored in the usual order), `padding` (what follows the
formatted part: the tail, and fill bytes; E2) and `chips` (memory chips by name, and what
they hold).
"""
