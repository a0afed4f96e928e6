"""Whole images into other ones: between LUKS1, LUKS2 and none, header attached or detached.

`transfer` carries a store over, section by section; `pipeline` carries any
other payload over, byte by byte; `conversion` opens both ends.
"""
