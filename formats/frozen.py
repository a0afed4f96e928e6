"""Records: immutable values with named fields, whose classes are cheap to define.

They behave like classes made by ``@dataclass(frozen=True)``, and type checkers treat
them so (PEP 681). But `dataclasses` imports `inspect` and compiles code for each class,
which takes 12 of the 60 ms in which a process unlocks a volume. So the classes that
every such process needs are records (spec/decisions/0013); all others are
dataclasses, which can do more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable

_R = TypeVar("_R", bound="Frozen")

_REQUIRED: Final[Any] = object()


class Field(NamedTuple):
    """Options of a field that its annotation and default cannot express.

    Attributes:
        default: Its value if none is given.
        default_factory: A function that makes that value instead.
        compare: Whether the field counts when records are compared.
        repr: Whether `repr` shows it.
    """

    default: Any = _REQUIRED
    default_factory: Callable[[], Any] | None = None
    compare: bool = True
    repr: bool = True


def field(
    *,
    default: Any = _REQUIRED,
    default_factory: Callable[[], Any] | None = None,
    compare: bool = True,
    repr: bool = True,  # noqa: A002  as dataclasses.field has it
) -> Any:
    """Return a `Field`, to be given in place of the default."""
    return Field(default, default_factory, compare, repr)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Frozen:
    """Base of records: a subclass has a field for each of its annotations.

    With ``kw_only``, they are set by name only. ``__post_init__`` runs at the end.
    """

    _fields: ClassVar[dict[str, Field]] = {}
    _kw_only: ClassVar[bool] = False

    def __init_subclass__(cls, *, kw_only: bool = False) -> None:
        found = dict(cls._fields)
        for name in cls.__annotations__:
            default = cls.__dict__.get(name, _REQUIRED)
            found[name] = default if isinstance(default, Field) else Field(default)
            if name in cls.__dict__:
                delattr(cls, name)
        cls._fields, cls._kw_only = found, kw_only

    def __init__(self, *values: Any, **named: Any) -> None:
        names = () if self._kw_only else tuple(self._fields)
        if len(values) > len(names):
            raise TypeError(f"{type(self).__name__} takes {len(names)} values, not {len(values)}")
        given = dict(zip(names, values, strict=False))
        for name, value in named.items():
            if name in given or name not in self._fields:
                problem = "is given twice" if name in given else "is not a field"
                raise TypeError(f"{type(self).__name__}: {name} {problem}")
            given[name] = value
        own = self.__dict__  # assignment is refused
        for name, one in self._fields.items():
            if name in given:
                own[name] = given[name]
            elif one.default_factory is not None:
                own[name] = one.default_factory()
            elif one.default is not _REQUIRED:
                own[name] = one.default
            else:
                raise TypeError(f"{type(self).__name__} needs a value for {name}")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the fields; subclasses may."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash((type(self), self._compared()))

    def __repr__(self) -> str:
        shown = (f"{n}={getattr(self, n)!r}" for n, one in self._fields.items() if one.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _compared(self) -> tuple[Any, ...]:
        return tuple(getattr(self, n) for n, one in self._fields.items() if one.compare)


def replace(record: _R, **changes: Any) -> _R:
    """Return a record with other values of some fields; as `dataclasses.replace`."""
    return type(record)(**{**record.__dict__, **changes})


def as_dict(record: Frozen) -> dict[str, Any]:
    """Return the fields of a record by name, in order; their values are not copied."""
    return dict(record.__dict__)
