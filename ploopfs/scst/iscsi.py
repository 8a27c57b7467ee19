"""What the iSCSI target driver keeps: session parameters by their names in RFC 7143, users, portals.

As if its daemon ran, which is who answers these attributes in the original. Nothing listens behind them. Knows no
target.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ploopfs.bounds import MAX_SCST_OBJECTS
from ploopfs.errors import AlreadyExists, BadValue, NoSuchEntry
from ploopfs.scst.settings import Blank, Marked, Setting, keyed
from ploopfs.scst.text import check_name, decimal, first_line, word, words

U16_MAX, U32_MAX = 2**16 - 1, 2**32 - 1
LEAST_SECRET_BYTES = 12
DEFAULT_WORD = ":default:"
PORTAL = "allowed_portal"
USERS = ("IncomingUser", "OutgoingUser")
OUTGOING = "OutgoingUser"

_REDIRECT = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9a-fA-F:.]+?))(?::([0-9]{1,5}))?")


def _key(name: str, default: str, parse: Callable[[str], str]) -> Setting:
    """A parameter of the protocol; `:default:` sets it back."""
    return Setting(
        name,
        default,
        lambda text: default if text.strip() == DEFAULT_WORD else parse(text),
        blank=Blank.MARKED,
        queued=True,
    )


def _yes_or_no(text: str) -> str:
    if text.strip() not in ("Yes", "No"):
        raise BadValue(f"{text[:40]!r} is neither Yes nor No")
    return text.strip()


def _digest(text: str) -> str:
    wanted = {part.strip().lower() for part in text.split(",")}
    if not wanted <= {"none", "crc32c"}:
        raise BadValue(f"{text[:40]!r} is no list of digests, expected None, CRC32C")
    return ",".join(name for name in ("None", "CRC32C") if name.lower() in wanted)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _addresses(text: str) -> str:
    for address in text.split():
        if not _is_address(address):
            raise BadValue(f"{address!r} is no address")
    return " ".join(text.split())


def _redirection(text: str) -> str:
    """ADDRESS[:PORT] and temp or perm, or nothing."""
    parts = words(text)
    if not parts:
        return ""
    match = _REDIRECT.fullmatch(parts[0])
    if len(parts) != 2 or match is None or not _is_address(match[1] or match[2]) or parts[1].lower() not in _KINDS:
        raise BadValue(f"{text[:80]!r} is no redirection, expected ADDRESS[:PORT] temp|perm")
    return f"{parts[0].removesuffix(':3260')} {parts[1].lower()}"


_KINDS = ("temp", "perm")


def _stripped(text: str) -> str:
    return text.strip()


def _flag(text: str) -> str:
    if text.strip() not in ("0", "1"):
        raise BadValue(f"{text[:40]!r} is neither 0 nor 1")
    return text.strip()


TARGET_SETTINGS: tuple[Setting, ...] = (
    _key("QueuedCommands", "32", decimal(1, 2048)),
    _key("RspTimeout", "90", decimal(2, U16_MAX)),
    _key("NopInInterval", "30", decimal(0, U16_MAX)),
    _key("NopInTimeout", "30", decimal(2, U16_MAX)),
    _key("MaxSessions", "0", decimal(0, U16_MAX)),
    _key("InitialR2T", "No", _yes_or_no),
    _key("ImmediateData", "Yes", _yes_or_no),
    _key("MaxRecvDataSegmentLength", "1048576", decimal(512, U32_MAX)),
    _key("MaxXmitDataSegmentLength", "1048576", decimal(512, U32_MAX)),
    _key("MaxBurstLength", "1048576", decimal(512, U32_MAX)),
    _key("FirstBurstLength", "65536", decimal(512, U32_MAX)),
    _key("MaxOutstandingR2T", "32", decimal(1, U16_MAX)),
    _key("HeaderDigest", "None", _digest),
    _key("DataDigest", "None", _digest),
    _key("RDMAExtensions", "No", _yes_or_no),
    Setting("per_portal_acl", "0", _flag, blank=Blank.ALWAYS, queued=True),
    Setting("redirect", "", _redirection, blank=Blank.MARKED, queued=True),
    Setting("alias", "", _stripped, blank=Blank.MARKED, queued=True),
)
DRIVER_SETTINGS: tuple[Setting, ...] = (
    Setting("enabled", "0", _flag, Marked.NEVER, blank=Blank.ALWAYS, queued=True),
    Setting("iSNSServer", "", _stripped, blank=Blank.ALWAYS, queued=True),
    Setting("internal_portal", "", _addresses, blank=Blank.ALWAYS, queued=True),
    Setting("isns_entity_name", "", first_line(255), Marked.NEVER, queued=True),
    Setting("link_local", "1", _flag, blank=Blank.ALWAYS, queued=True),
)


@dataclass(eq=False, slots=True)
class Extra:
    """An attribute that was added by a command: a user with a secret, or a portal without one. `kind` is its name
    without the number that keeps the names of several apart."""

    kind: str
    key: str
    secret: str = ""

    @property
    def is_secret(self) -> bool:
        return self.kind in USERS

    def show(self) -> str:
        return keyed(f"{self.key} {self.secret}" if self.secret else self.key) + "\n"


class Extras(dict[str, Extra]):
    """The added attributes of one object, by their names; `kinds` are the possible ones."""

    def __init__(self, *kinds: str) -> None:
        super().__init__()
        self._kinds = kinds

    def add(self, text: str) -> None:
        name, rest = word(text)
        kind = self._kind(check_name(name, "an attribute"))
        extra = self._parsed(kind, rest)
        if any(True for _ in self._named(kind, extra.key)):
            raise BadValue(f"{kind} {extra.key} exists already")
        MAX_SCST_OBJECTS.check_room(len(self), "added attributes")
        if kind == OUTGOING:
            for old in [name for name, other in self.items() if other.kind == OUTGOING]:
                del self[old]
        self[self._free(name)] = extra

    def remove(self, text: str) -> None:
        name, rest = word(text)
        kind, key = self._kind(name), word(rest)[0]
        found = next(self._named(kind, key), None)
        if found is None:
            missing = NoSuchEntry if kind in USERS else BadValue
            raise missing(f"there is no {kind} {key!r}")
        del self[found]

    def store(self, name: str, text: str) -> None:
        """Another user or portal in the place of one."""
        key, rest = word(text)
        if not key:
            raise BadValue(f"a value of {name} is missing")
        if any(other != name for other in self._named(self[name].kind, key)):
            raise AlreadyExists(f"{self[name].kind} {key} exists already")
        self[name].key, self[name].secret = key, word(rest)[0]

    def _kind(self, name: str) -> str:
        for kind in self._kinds:
            if name.lower().rstrip("0123456789") == kind.lower():
                return kind
        raise BadValue(f"{name!r} is no attribute that can be added, expected one of {', '.join(self._kinds)}")

    @staticmethod
    def _parsed(kind: str, text: str) -> Extra:
        values = words(text)
        if kind in USERS:
            if len(values) < 2 or len(values[1]) < LEAST_SECRET_BYTES:
                raise BadValue(f"{kind} wants a name and a secret of at least {LEAST_SECRET_BYTES} characters")
            return Extra(kind, values[0], values[1])
        if len(values) != 1:
            raise BadValue(f"{kind} wants one value, not {len(values)}")
        return Extra(kind, values[0])

    def _named(self, kind: str, key: str) -> Iterator[str]:
        return (name for name, extra in self.items() if extra.kind == kind and extra.key == key)

    def _free(self, name: str) -> str:
        if name not in self:
            return name
        free = next(f"{name}{number}" for number in range(1, len(self) + 2) if f"{name}{number}" not in self)
        return check_name(free, "an attribute")
