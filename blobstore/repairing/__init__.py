"""Repairing damaged heads, as far as something proves what they said (C70 to C77).

`repair` is where it starts; `plan` decides, by what `mending` finds out from a
head's own check and `rebuilding` from the root; `survey` sees what is sound,
`remains` what is left of what is not, and `overlay` tries it out.
"""
