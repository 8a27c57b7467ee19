"""Attributes as rows of a table: a name, how to show it, how to store it, what notifies it.

A row is written for a kind of subject (a device, a delta) and becomes an `Attribute` of one subject. Knows no subject.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Generic, TypeVar

from ploopfs.device.signal import Signal
from ploopfs.errors import PloopError
from ploopfs.sysfs.nodes import Attribute, Directory, Node

S = TypeVar("S")
V = TypeVar("V")
Removed = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Row(Generic[S]):
    """`Attribute` explains all but the name; the file's mode follows from what a row has."""

    name: str
    show: Callable[[S], str | None] | None
    store: Callable[[S, str], Awaitable[str | None]] | None = None
    signal: Callable[[S], Signal] | None = None
    bounded: bool = True
    private: bool = False


def constant(name: str, value: str | int) -> Row[S]:
    """An attribute that reads the same on every subject."""
    return Row(name, lambda _: str(value))


def storing(parse: Callable[[str], V], put: Callable[[S, V], object]) -> Callable[[S, str], Awaitable[None]]:
    """A store that parses and then puts the value into the subject, without waiting."""

    async def store(subject: S, text: str) -> None:
        put(subject, parse(text))

    return store


def refusing(error: type[PloopError], reason: str) -> Callable[[S, str], Awaitable[None]]:
    """A store that takes no value at all, where the kernel has one for devices of another kind."""

    async def store(_subject: S, _text: str) -> None:
        raise error(reason)

    return store


async def ignoring(_subject: object, _text: str) -> None:
    """A store that takes everything and does nothing."""


def directory(
    rows: Iterable[Row[S]], subject: S, removed: Removed, others: Callable[[], Mapping[str, Node]] = dict
) -> Directory:
    """The attributes of one subject, made when first looked at, and then the same; with `others` beside them."""

    @cache
    def children() -> Mapping[str, Node]:
        return {row.name: attribute(row, subject, removed) for row in rows} | dict(others())

    return Directory(children, is_fixed=True)


def attribute(row: Row[S], subject: S, removed: Removed) -> Attribute:
    return Attribute(
        show=row.show and partial(row.show, subject),
        store=row.store and partial(row.store, subject),
        signal=row.signal and row.signal(subject),
        removed=removed,
        bounded=row.bounded,
        private=row.private,
    )


class Kept(Generic[S, V]):
    """What was made of each named subject, for as long as that very subject stays under its name."""

    __slots__ = ("_kept", "_make")

    def __init__(self, make: Callable[[str, S], V]) -> None:
        self._make = make
        self._kept: dict[str, tuple[S, V]] = {}

    def of(self, subjects: Mapping[str, S]) -> dict[str, V]:
        for name in self._kept.keys() - subjects.keys():
            del self._kept[name]
        for name, subject in subjects.items():
            if name not in self._kept or self._kept[name][0] is not subject:
                self._kept[name] = (subject, self._make(name, subject))
        return {name: self._kept[name][1] for name in subjects}
