"""What the directories of the subsystem are made of: rows that execute commands, settings, and names that come and go.

Knows no command and no setting.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Generic, TypeVar

from ploopfs.scst.core import Core
from ploopfs.scst.settings import Setting, Settings
from ploopfs.sysfs.nodes import Attribute, Directory, Link, Node
from ploopfs.sysfs.rows import Kept, Removed

S = TypeVar("S")
Nodes = Callable[[], Mapping[str, Node]]


@dataclass(frozen=True, slots=True)
class Of(Generic[S]):
    """An object of the subsystem, and the subsystem that executes what is written to it."""

    core: Core
    it: S


def queued(
    command: Callable[[Of[S], str], None], shown: Callable[[str], str] | None = None
) -> Callable[[Of[S], str], Awaitable[None]]:
    """A store that goes through the queue of management commands. `shown` makes of a text what the log may hold."""

    async def store(subject: Of[S], text: str) -> None:
        subject.core.queued(partial(command, subject), text, shown(text) if shown is not None else None)

    return store


def direct(command: Callable[[Of[S], str], None]) -> Callable[[Of[S], str], Awaitable[None]]:
    """A store that does not, and whose result nobody keeps."""

    async def store(subject: Of[S], text: str) -> None:
        command(subject, text)

    return store


def settings_of(core: Core, settings: Settings, removed: Removed) -> dict[str, Attribute]:
    return {name: _setting(core, settings, setting, removed) for name, setting in settings.table.items()}


def _setting(core: Core, settings: Settings, setting: Setting, removed: Removed) -> Attribute:
    put = partial(settings.store, setting.name)

    async def store(text: str) -> None:
        if setting.queued:
            core.queued(put, text)
        else:
            put(text)

    show = partial(settings.show, setting.name)
    return Attribute(show=show, store=store if setting.parse is not None else None, removed=removed)


def together(fixed: Nodes, *changing: Nodes) -> Directory:
    """`fixed` is asked once, when somebody first looks; the others each time. They keep their own nodes."""
    once: Nodes = cache(fixed)

    def children() -> dict[str, Node]:
        found = dict(once())
        for nodes in changing:
            found.update(nodes())
        return found

    return Directory(children)


def links(of: Callable[[], Mapping[str, S]], target: Callable[[S], str]) -> Nodes:
    """A link for each object, as long as it stays under its name."""
    kept: Kept[S, Link] = Kept(lambda _, subject: Link(target(subject)))
    return lambda: kept.of(of())


def directories(of: Callable[[], Mapping[str, S]], make: Callable[[str, S], Directory]) -> Nodes:
    kept = Kept(make)
    return lambda: kept.of(of())
