"""Answers that the kernel sends by itself when a write has succeeded: each once, and never to another file."""

import errno
import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.blockfuse import looking as looking_module
from ploopfs.device.bounds import DEFAULT_BOUNDS, Bounds
from ploopfs.device.device import Device
from ploopfs.device.flavour import VZ7
from ploopfs.device.registry import Registry
from ploopfs.device.stats import Op
from ploopfs.device.turn import Turn
from ploopfs.engine import os_file
from ploopfs.engine.file import Buffer
from ploopfs.engine.os_file import OsFiles
from ploopfs.engine.ring import Ring, hear
from ploopfs.engine.ring_write import Reply
from ploopfs.scst.module import Scst
from tests.blockfuse import kernel as fuse
from tests.blockfuse.kernel import U32, U64, Kernel, connected, packed, transfer
from tests.blockfuse.test_soon import OF_TOP, write
from tests.device.replying import ReplyingFile, ReplyingFiles
from tests.device.rig import CLUSTER, Rig, image, rig_of, three_deltas
from tests.realparts import need

DATA = b"w" * 512


@pytest.fixture
async def rig() -> Rig:
    return await rig_of(three_deltas(), storage=ReplyingFiles)


def top_of(rig: Rig) -> ReplyingFile:
    file = rig.device.stack.top.file._inner  # type: ignore[attr-defined]  # below the injector
    assert isinstance(file, ReplyingFile)
    return file


@asynccontextmanager
async def serving(device: Device) -> AsyncIterator[Kernel]:
    """A file of the disk is open as 1."""
    async with connected(device) as kernel:
        assert await kernel.open() == 1
        yield kernel


async def test_an_answer_that_was_left_to_the_kernel_comes_once(rig: Rig) -> None:
    async with serving(rig.device) as kernel:
        for _ in range(5):
            assert (await kernel.call(fuse.WRITE, write())).number(width=U32) == len(DATA)
        await kernel.settled()
        assert (kernel.connection._writes._left, list(kernel.connection._writes)) == ({}, [])
    assert len(rig.device.unflushed) == 5


@pytest.mark.expects_warnings
async def test_one_that_was_refused_is_sent_by_us(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    top_of(rig).refusal = errno.ENOMEM
    async with serving(rig.device) as kernel:
        assert (await kernel.call(fuse.WRITE, write())).number(width=U32) == len(DATA)
        await kernel.settled()
    assert "an answer was refused" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
async def test_one_to_a_request_that_is_none_any_more_is_nobodys(rig: Rig, number: int) -> None:
    top_of(rig).refusal = number
    async with serving(rig.device) as kernel:
        unique = await kernel.ask(fuse.WRITE, write())
        answers = await kernel.settled()
        assert unique not in [answer.unique for answer in answers]
        assert (kernel.connection._writes._left, list(kernel.connection._writes)) == ({}, [])


@pytest.mark.expects_warnings
async def test_a_write_that_fails_is_answered_once_with_its_errno(rig: Rig) -> None:
    rig.lose(errno.EBUSY, "write")
    async with serving(rig.device) as kernel:
        assert (await kernel.call(fuse.WRITE, write())).errno == errno.EBUSY
        await kernel.settled()
        assert not kernel.connection._writes._left


async def test_the_end_of_the_connection_waits_until_the_kernel_has_sent_what_was_left_to_it(rig: Rig) -> None:
    """Of the last write, which has ended."""
    gap = top_of(rig).gap = trio.Event()
    async with serving(rig.device) as kernel:
        unique = await kernel.ask(fuse.WRITE, write())
        await kernel.settled()
        assert not kernel.connection._writes
        kernel.connection.end()
        await wait_all_tasks_blocked()
        assert rig.device.open_count == 1
        gap.set()
        assert (await kernel.answer(unique)).number(width=U32) == len(DATA)
        await wait_all_tasks_blocked()
        assert rig.device.open_count == 0


@pytest.mark.parametrize("ends", ["well", "badly"])
async def test_the_number_of_a_closed_connection_is_no_other_file_s_until_the_last_reply_is_over(
    rig: Rig, ends: str
) -> None:
    async with serving(rig.device) as kernel:
        released = rig.hang("write", count=2)
        for _ in range(2):
            await kernel.ask(fuse.WRITE, write())
        await kernel.settled()
        fd = kernel.connection._fd
        kernel.connection.close()
        assert kernel.connection.is_closed
        assert kernel._sock.recv(100) == b"", "who has asked is told at once"
        assert os.readlink(f"/proc/self/fd/{fd}") == os.devnull
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
        assert fd not in others
        if ends == "badly":
            rig.faults.rules[0].errno = errno.ENOSPC
        released.set()
        await wait_all_tasks_blocked()
        assert not kernel.connection._writes._left
        assert not os.path.exists(f"/proc/self/fd/{fd}")
        for other in others:
            os.close(other)


async def test_a_connection_without_replies_under_way_is_closed_at_once(rig: Rig) -> None:
    async with serving(rig.device) as kernel:
        assert (await kernel.call(fuse.WRITE, write())).errno == 0
        await kernel.settled()
        fd = kernel.connection._fd
        kernel.connection.close()
        assert not os.path.exists(f"/proc/self/fd/{fd}")


# --- for real -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def real(tmp_path: Path, name: str = "ploop0", bounds: Bounds = DEFAULT_BOUNDS) -> AsyncIterator[Kernel]:
    """On a file of this machine; both fuses are in."""
    path = tmp_path / f"{name}.hds"
    path.write_bytes(image({0: b"o", 2: b"t"}).build())
    registry = Registry()
    scst = Scst(registry)
    device = await registry.add(name, flavour=VZ7, image=[str(path)], files=OsFiles(), bounds=bounds)
    scst.load()
    scst.attach(device)
    async with serving(device) as kernel:
        yield kernel
    await registry.remove(name)


@pytest.mark.parametrize("how", ["linked", "one by one", "no ring"])
async def test_the_results_are_the_same_however_the_kernel_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "no ring":
        monkeypatch.setattr(os_file, "ring_of_loop", lambda: None)
    else:
        need(io_uring=True)
    if how == "one by one":
        really = Ring._map

        def mapped(ring: Ring, parameters: bytearray) -> None:
            really(ring, parameters)
            ring.can_link = False

        monkeypatch.setattr(Ring, "_map", mapped)
    async with real(tmp_path) as kernel:
        for number in range(6 * 8):
            data = bytes([65 + number]) * 4096
            asked = transfer(1, number * CLUSTER // 8, len(data)) + data
            assert (await kernel.call(fuse.WRITE, asked)).number(width=U32) == 4096, number
        for number in range(6 * 8):
            body = (await kernel.call(fuse.READ, transfer(1, number * CLUSTER // 8, 4096))).body
            is_same = body == bytes([65 + number]) * 4096
            assert is_same, number


async def test_what_the_kernel_has_acknowledged_is_kept_before_the_next_request_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(io_uring=True)
    monkeypatch.setattr(looking_module, "_POLL_NS", 0)
    seen: list[list[int]] = []
    async with real(tmp_path) as kernel:
        device = kernel.connection._device
        assert isinstance(device, Device)
        really = Turn.read

        def read(turn: Turn, offset: int, length: int) -> Buffer | None:
            seen.append([change.offset for change in device.unflushed])
            return really(turn, offset, length)

        monkeypatch.setattr(Turn, "read", read)
        for number in range(60):
            before = kernel.took_all()
            await kernel.ask(fuse.WRITE, transfer(1, OF_TOP + number, len(DATA)) + DATA)
            while not kernel.connection._writes._left and kernel.took_all() == before:
                await trio.lowlevel.checkpoint()
            while kernel.took_all() == before:
                pass  # no turn of the event loop: nobody here is told
            asked = len(seen)
            assert kernel.sent(fuse.request(fuse.READ, transfer(1, OF_TOP, 512), unique=2 + 2 * number))
            while len(seen) == asked:
                await trio.lowlevel.checkpoint()
            assert seen[-1] == [OF_TOP + each for each in range(number + 1)]
        assert (await kernel.call(fuse.FSYNC, packed((U64, 1), (U32, 0), (U32, 0)))).errno == 0
        assert len(device.unflushed) == 0, "it is confirmed by the fsync that follows"
        await kernel.settled()


async def test_what_is_answered_without_a_pause_shares_a_turn_which_is_over_with_what_the_ring_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(io_uring=True)
    turns: list[Turn] = []
    really = Turn.read

    def read(turn: Turn, offset: int, length: int) -> Buffer | None:
        turns.append(turn)
        return really(turn, offset, length)

    async def three_reads(kernel: Kernel) -> set[int]:
        turns.clear()
        kernel.answers.clear()
        for unique in (2, 4, 6):
            assert kernel.sent(fuse.request(fuse.READ, transfer(1, OF_TOP, 512), unique=unique))
        for unique in (2, 4, 6):
            assert (await kernel.answer(unique)).errno == 0
        return {id(turn) for turn in turns}

    async with real(tmp_path) as kernel:
        device = kernel.connection._device
        assert isinstance(device, Device)
        await three_reads(kernel)  # the storage may have to be waited for
        monkeypatch.setattr(Turn, "read", read)
        assert len(await three_reads(kernel)) == 1
        monkeypatch.setattr(Ring, "has_ended", property(lambda _ring: True))
        assert len(await three_reads(kernel)) == 3
        await kernel.settled()
        assert device.stats.by_op[Op.READ].ios == 9, "and what was done is recorded when others can look"


async def test_a_write_leaves_nothing_to_the_collector_of_cycles(tmp_path: Path) -> None:
    need(io_uring=True)
    async with real(tmp_path) as kernel:
        gc.collect()
        gc.disable()
        try:
            for number in range(100):
                assert kernel.connection._writes.begin(10_000 + number, 0, OF_TOP, DATA)
                while kernel.connection._writes or kernel.connection._writes._left:
                    hear()
            assert not any(isinstance(found, Reply) for found in gc.get_objects())
        finally:
            gc.enable()
        await kernel.settled()
