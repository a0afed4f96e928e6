"""What clients may ask of an owner (O11)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a client may ask of the owner (O11). Sizes in bytes, times in seconds.

    Attributes:
        connections: At the same time.
        head: Of a request, its headers included.
        idle: Waited for a request to begin.
        receiving: Waited for the rest of a head, and as long again for a body.
        sending: Waited for a client to take a reply.
        draining: Waited for what a refused client still sends.
        bodies: Bytes of all bodies, of requests and replies, that are in memory at the same time.
        waiting: Waited for a part of these.
    """

    connections: int = 64
    head: int = 16 << 10
    idle: float = 60
    receiving: float = 30
    sending: float = 30
    draining: float = 2
    bodies: int = 128 << 20
    waiting: float = 10
