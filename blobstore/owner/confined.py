"""What a worker of a TPM may ask for: the sections of its TPM, and nothing else (O101)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blobstore.owner import requests
from blobstore.owner.resources import Found, Method, Reply, Request, Resources
from blobstore.owner.sections import SectionResources
from luks import PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from blobstore.store.store import Store

_OF_ONE: Final = ("/v1/sections/NAME", "/v1/sections/NAME/info")
#: Bytes of any state of a TPM, and more: what is too large is answered, and the connection,
#: which cannot be made again, goes on.
_STATE_SIZE: Final = 1 << 20
_TRANSACTIONS: Final = "/v1/transactions"


class ConfinedResources:
    """The part of `SectionResources` that has to do with a few sections."""

    def __init__(self, store: Store, names: Collection[str]) -> None:
        """Answer from ``store`` for sections of these names."""
        self._all = SectionResources(store).resources()
        self._names = frozenset(names)

    def resources(self) -> Resources:
        """Return these resources."""
        found: dict[str, dict[str, Method]] = {
            path: {verb: self._confined(method) for verb, method in self._all[path].items()}
            for path in _OF_ONE
        }
        transact = self._all[_TRANSACTIONS]["POST"]
        found[_TRANSACTIONS] = {
            "POST": Method(self._confined_changes(transact.answer), transact.body)
        }
        return found

    def _confined(self, method: Method) -> Method:
        def answer(request: Request, found: Found) -> Reply:
            self._require(found.name)
            return method.answer(request, found)

        body = method.body if isinstance(method.body, int) else _STATE_SIZE
        return Method(answer, body, method.flags)

    def _confined_changes(
        self, transact: Callable[[Request, Found], Reply]
    ) -> Callable[[Request, Found], Reply]:
        def answer(request: Request, found: Found) -> Reply:
            for change in requests.decode(request.body, requests.ChangeList).changes:
                for name in requests.names_of(change):
                    self._require(name)
            return transact(request, found)

        return answer

    def _require(self, name: str) -> None:
        if name not in self._names:
            raise PolicyError(f"section {name!r} is not one of this TPM's [O101]")
