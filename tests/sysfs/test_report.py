"""A long text is made while it is read: nobody waits for more of it than a piece."""

from collections.abc import Iterator
from typing import cast

import pytest
import trio

from ploopfs.device.registry import Registry
from ploopfs.sysfs import metrics
from ploopfs.sysfs.metrics import METRICS, exposition
from ploopfs.sysfs.nodes import Report
from ploopfs.sysfs.report import OpenReport
from tests.sysfs.fakes import FakeRegistry

PIECES = ("first\n", "second\n", "third\n")
TEXT = "".join(PIECES).encode()


class Told:
    """A report that writes down what is made of it."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.file = OpenReport(Report(self._pieces))

    def _pieces(self) -> Iterator[str]:
        for piece in PIECES:
            self.made.append(piece)
            yield piece


async def test_no_more_is_made_than_is_read() -> None:
    told = Told()
    assert await told.file.read(0, 3) == b"fir"
    assert told.made == ["first\n"]
    assert await told.file.read(3, 6) == b"st\nsec"
    assert told.made == ["first\n", "second\n"]
    assert await told.file.read(9, 100) == TEXT[9:]
    assert await told.file.read(len(TEXT), 100) == b""


async def test_reading_at_the_beginning_makes_the_text_anew() -> None:
    told = Told()
    assert await told.file.read(0, 100) == await told.file.read(0, 100) == TEXT
    assert told.made == [*PIECES, *PIECES]


async def test_a_read_far_behind_the_beginning_gets_what_is_there() -> None:
    assert await Told().file.read(8, 3) == TEXT[8:11]


async def test_two_who_read_one_descriptor_get_one_text() -> None:
    told = Told()
    parts: dict[int, bytes] = {}

    async def read(offset: int) -> None:
        parts[offset] = await told.file.read(offset, 4)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, 0)
        for offset in range(4, len(TEXT), 4):
            nursery.start_soon(read, offset)
    # Whoever is first begins it; who then reads at 0 begins another, and neither gets a mixture.
    assert b"".join(part for _, part in sorted(parts.items())) == TEXT


async def test_others_run_between_any_two_pieces() -> None:
    count, made, looks = 100, 0, 0

    def pieces() -> Iterator[str]:
        nonlocal made
        for _ in range(count):
            made += 1
            yield "piece"

    async def look() -> None:
        nonlocal looks
        while made < count:
            looks += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        nursery.start_soon(OpenReport(Report(pieces)).read, 0, 1000)
    assert looks >= count - 1


@pytest.mark.parametrize("count", [0, 1, 7, 50])
async def test_no_piece_of_the_metrics_is_about_more_devices_than_a_few(registry: FakeRegistry, count: int) -> None:
    for number in range(count):
        registry.add(name=f"ploop{number}")
    pieces = list(exposition(cast(Registry, registry)))
    of_devices = [{line.split('"')[1] for line in piece.splitlines() if 'device="' in line} for piece in pieces]
    assert max(map(len, of_devices)) == min(count, metrics._DEVICES_OF_A_PIECE)
    heads = [line for piece in pieces for line in piece.splitlines() if line.startswith("# TYPE ")]
    assert len(heads) == len(set(heads)) == len(METRICS) + 3
