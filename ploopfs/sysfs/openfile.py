"""What one open descriptor of an attribute does: kernfs' rules (kernel-ploop.md 5), without a file system around them.

Knows nothing of FUSE or of what the values mean. Invariant: what a reader gets is one answer of `show` until he starts
again at offset 0, and the version he is taken to have seen is never newer than that answer.
"""

import select

import trio

from ploopfs.bounds import PAGE_BYTES
from ploopfs.errors import NoSuchDevice, PermissionDenied
from ploopfs.sysfs.nodes import Attribute

READY = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
CHANGED = select.POLLPRI | select.POLLERR

O_RDONLY, O_WRONLY, O_ACCMODE = 0, 1, 3

NOT_SEEN = 0
CONSTANT_VERSION = 1
"""The version of an attribute that never notifies."""


def opening(attribute: Attribute, flags: int) -> "OpenAttribute":
    """open(2): a direction without show or store is refused even to root. O_TRUNC, O_APPEND and others mean nothing."""
    if attribute.removed():
        raise NoSuchDevice("the attribute was removed")
    access = flags & O_ACCMODE
    if access != O_WRONLY and attribute.show is None:
        raise PermissionDenied("the attribute cannot be read")
    if access != O_RDONLY and attribute.store is None:
        raise PermissionDenied("the attribute cannot be written")
    return OpenAttribute(attribute)


class OpenAttribute:
    """One open file. `read` and `poll` never wait; `write` waits for as long as the store does."""

    __slots__ = ("_answer", "_attribute", "_seen_version", "_text")

    def __init__(self, attribute: Attribute) -> None:
        self._attribute = attribute
        self._text: bytes | None = None
        self._answer: str | None = None
        self._seen_version = NOT_SEEN

    def read(self, offset: int, size: int) -> bytes:
        self._check_exists()
        if offset == 0 or self._text is None:
            self._text = None  # a failing show leaves nothing behind that a later read could continue
            self._text = self._show()
        return self._text[offset : offset + size]

    async def write(self, _offset: int, data: bytes) -> int:
        """One store with all of `data`, cut at a page if the text is bounded; the number of bytes taken. The offset
        means nothing."""
        await trio.lowlevel.checkpoint()
        self._check_exists()
        if self._attribute.store is None:
            raise PermissionDenied("the attribute cannot be written")
        if not data:
            return 0
        page = data[:PAGE_BYTES] if self._attribute.bounded else data
        # The kernel's stores get a C string, so nothing after a NUL is seen.
        text, _, _ = page.partition(b"\0")
        self._answer = await self._attribute.store(text.decode("utf-8", "surrogateescape"))
        if self._answer is not None:
            self._text = None
        return len(page)

    def poll(self) -> tuple[int, int]:
        """(events, version): PRI and ERR are in while this descriptor's last read, if any, is older than `version`."""
        version = self._version
        changed = version != self._seen_version or self._attribute.removed()
        return READY | CHANGED if changed else READY, version

    @property
    def _version(self) -> int:
        signal = self._attribute.signal
        return CONSTANT_VERSION if signal is None else signal.version

    def _show(self) -> bytes:
        if self._attribute.show is None:
            raise PermissionDenied("the attribute cannot be read")
        # Before show, not after: a change that comes between the two is then reported once too often, never missed.
        self._seen_version = self._version
        text = self._attribute.show() if self._answer is None else self._answer or None
        if text is None:
            return b""
        shown = f"{text}\n".encode("utf-8", "surrogateescape")
        return shown[: PAGE_BYTES - 1] if self._attribute.bounded else shown

    def _check_exists(self) -> None:
        if self._attribute.removed():
            raise NoSuchDevice("the attribute was removed")
