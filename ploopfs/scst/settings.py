"""Values that SCST keeps, shows and saves, as rows of tables: what they may be, and which of them carry the key mark.

Few of them mean anything where nothing is served behind the subsystem. But SCST's own tools read every one of them, and
write those with the mark into a configuration, so what was stored is shown again. Knows no attribute.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

KEY_MARK = "[key]"
"""The line that follows a value which a saved configuration must hold."""


class Marked(Enum):
    """When a value carries the mark."""

    NEVER = auto()
    CHANGED = auto()
    """It is not the default."""
    STORED = auto()
    """Somebody has stored it, be it the default."""


class Blank(Enum):
    """When an empty line ends the text, as it does where a daemon answers with a newline of its own."""

    NEVER = auto()
    MARKED = auto()
    ALWAYS = auto()


@dataclass(frozen=True, slots=True)
class Setting:
    """`parse` makes the value of a stored text, or raises; without it the attribute is read-only. None reads as an
    empty file. `queued`: storing goes through the queue of management commands, which keeps the result."""

    name: str
    default: str | None
    parse: Callable[[str], str | None] | None = None
    marked: Marked = Marked.CHANGED
    blank: Blank = Blank.NEVER
    queued: bool = False


class Settings:
    """The values of one table for one object; `defaults` are those that differ from the table's."""

    def __init__(self, table: Sequence[Setting], defaults: Mapping[str, str | None] | None = None) -> None:
        self.table = {setting.name: setting for setting in table}
        self._defaults = {setting.name: setting.default for setting in table} | dict(defaults or {})
        self._stored: dict[str, str | None] = {}

    def __contains__(self, name: object) -> bool:
        return name in self.table

    def __getitem__(self, name: str) -> str | None:
        return self._stored.get(name, self._defaults[name])

    def __setitem__(self, name: str, value: str | None) -> None:
        """A value that has been parsed."""
        assert name in self.table, name
        self._stored[name] = value

    def store(self, name: str, text: str) -> None:
        parse = self.table[name].parse
        assert parse is not None
        self[name] = parse(text)

    def show(self, name: str) -> str | None:
        setting, value = self.table[name], self[name]
        if value is None:
            return None
        mark = self._is_marked(setting)
        blank = setting.blank is Blank.ALWAYS or (mark and setting.blank is Blank.MARKED)
        return value + mark * f"\n{KEY_MARK}" + blank * "\n"

    def _is_marked(self, setting: Setting) -> bool:
        match setting.marked:
            case Marked.NEVER:
                return False
            case Marked.CHANGED:
                return self[setting.name] != self._defaults[setting.name]
            case Marked.STORED:
                return setting.name in self._stored


def keyed(value: object, marked: bool = True) -> str:
    """A value that is no setting, with its mark."""
    return f"{value}\n{KEY_MARK}" if marked else str(value)
