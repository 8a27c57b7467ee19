"""What one open descriptor of a report does: it makes the text as far as it is read, and lets others go first.

Knows nothing of FUSE or of what the text means. Invariants: a descriptor reads one text until it starts again at offset
0; between two pieces whoever is ready to run does.
"""

from collections.abc import Iterator

import trio

from ploopfs.sysfs.nodes import Report


class OpenReport:
    """One open file. Several may read it at the same time."""

    __slots__ = ("_pieces", "_report", "_text")

    def __init__(self, report: Report) -> None:
        self._report = report
        self._text = bytearray()
        self._pieces: Iterator[str] | None = None

    async def read(self, offset: int, size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if offset == 0 or self._pieces is None:
            self._text, self._pieces = bytearray(), self._report.pieces()
        # One that starts again meanwhile leaves this text to who reads it.
        text, pieces = self._text, self._pieces
        while len(text) < offset + size and (piece := next(pieces, "")):
            text += piece.encode("utf-8", "surrogateescape")
            await trio.lowlevel.checkpoint()
        return bytes(text[offset : offset + size])
