"""Sections as block devices, for what writes like a disk (C62)."""
