"""The whole story: storage lost, standby, recovered, nothing acknowledged is gone. Told once, then at random."""

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ploopfs.device.standby import STANDBY_ERRNOS, State
from ploopfs.engine.inject.rule import Rule
from ploopfs.errors import BackendError, DeviceAborted, InStandby, PloopError, RequestFailed
from tests.device.rig import (
    CLUSTER,
    CONTENT,
    DISK_BYTES,
    NEW,
    REQUESTS,
    STACK,
    TOP,
    Rig,
    errno_of,
    rig_of,
    three_deltas,
)

pytestmark = pytest.mark.expects_warnings

# --- told once ----------------------------------------------------------------------------------------------------


async def same_file(rig: Rig) -> str:
    """The storage answers again."""
    await rig.device.reopen()
    return TOP


async def same_path(rig: Rig) -> str:
    """The storage was mounted again: another file under the same name."""
    rig.copy(TOP, TOP)
    await rig.device.reopen()
    return TOP


async def another_path(rig: Rig) -> str:
    """The storage offers the image elsewhere."""
    rig.copy(TOP, NEW)
    await rig.device.replace_top(NEW)
    return NEW


@pytest.mark.parametrize("way_back", [same_file, same_path, another_path], ids=lambda way: way.__name__)
@pytest.mark.parametrize("number", [errno.EBUSY, errno.ENOTCONN, errno.EIO], ids=errno.errorcode.get)
async def test_a_device_survives_the_loss_of_its_storage(
    rig: Rig, number: int, way_back: Callable[[Rig], Awaitable[str]], caplog: pytest.LogCaptureFixture
) -> None:
    device = rig.device
    device.opened()
    await device.write(CLUSTER + 100, b"before")
    await device.write(4 * CLUSTER, b"w" * CLUSTER)
    acknowledged = await rig.content()

    outage = rig.lose(number)
    assert await errno_of(device.write(CLUSTER + 100, b"during")) == number
    assert rig.state is State.ON
    for request in REQUESTS.values():
        with pytest.raises(InStandby):
            await request(device)
    assert await errno_of(device.reopen()) == number
    assert rig.state is State.ON
    rig.faults.remove(outage)

    top = await way_back(rig)
    assert (rig.state, rig.queue.generation, device.open_count, device.last_error) == (State.OFF, 2, 1, "")
    assert await rig.content() == acknowledged
    await device.write(CLUSTER + 100, b"after!")
    await device.flush()

    assert await device.aclose()
    assert not rig.is_marked(top)
    again = await rig_of({path: rig.store.bytes_of(path) for path in (*STACK[:-1], top)})
    assert await again.content() == acknowledged.replace(b"before", b"after!")
    assert caplog.text.count("ploop0 was switched into the standby mode") == 1


@pytest.mark.parametrize("way_back", [same_file, same_path, another_path], ids=lambda way: way.__name__)
async def test_a_recovered_device_that_nobody_writes_is_closed_cleanly_too(
    rig: Rig, way_back: Callable[[Rig], Awaitable[str]]
) -> None:
    rig.faults.remove(await rig.enter_standby(errno.ENOTCONN))
    top = await way_back(rig)
    assert await rig.device.aclose()
    assert not rig.is_marked(top)
    assert await (await rig_of({path: rig.store.bytes_of(path) for path in (*STACK[:-1], top)})).content() == CONTENT


async def test_a_device_survives_one_loss_after_another(rig: Rig) -> None:
    for generation, number in enumerate((errno.EBUSY, errno.ENOTCONN, errno.EIO), 2):
        await rig.device.write(generation * CLUSTER, bytes([generation]) * CLUSTER)
        rig.faults.remove(await rig.enter_standby(number))
        await rig.device.reopen()
        assert (rig.queue.generation, rig.state) == (generation, State.OFF)
    written = b"".join(bytes([generation]) * CLUSTER for generation in (2, 3, 4))
    assert await rig.device.read(2 * CLUSTER, 3 * CLUSTER) == written
    assert await rig.device.aclose()


# --- told at random -----------------------------------------------------------------------------------------------

BLOCK = CLUSTER // 4
BLOCKS = DISK_BYTES // BLOCK
OUTAGES = ((), ("read",), ("write",), ("fsync",), ("write", "fsync"), ("truncate",))
"""Which operations an outage fails; none named: all."""


async def error_of(call: Awaitable[object]) -> PloopError | None:
    try:
        await call
    except PloopError as error:
        return error
    return None


@dataclass
class Model:
    """What each block may read as (one letter, or several after a write that failed), and the state that must show."""

    rig: Rig
    blocks: list[set[int]] = field(default_factory=lambda: [{CONTENT[at * BLOCK]} for at in range(BLOCKS)])
    state: State = State.OFF
    aborted: bool = False
    outage: Rule | None = None

    def meets(self, error: BackendError) -> None:
        """The present stack met an answer of its storage."""
        if self.state is not State.NOT_SUPPORTED and error.errno in STANDBY_ERRNOS:
            self.state = State.ON
        elif error.errno != errno.ENOSPC or error.operation == "fsync":
            self.aborted = True

    async def request(self, call: Awaitable[object]) -> str:
        """How it ended: "done", "failed" or "refused"; and that this was right."""
        in_standby, aborted = self.state is State.ON, self.aborted
        error = await error_of(call)
        assert isinstance(error, InStandby) is in_standby
        match error:
            case None:
                return "done"
            case InStandby():
                return "refused"
            case DeviceAborted():
                assert aborted
                return "refused"
        assert isinstance(error, RequestFailed)
        assert isinstance(error.__cause__, BackendError)
        self.meets(error.__cause__)
        return "failed"

    async def write(self, at: int, count: int, letter: int, *, fua: bool) -> None:
        blocks = self.blocks[at : at + count]
        data = bytes([letter]) * (len(blocks) * BLOCK)
        match await self.request(self.rig.device.write(at * BLOCK, data, fua=fua)):
            case "done":
                self.blocks[at : at + count] = [{letter} for _ in blocks]
            case "failed":
                self.blocks[at : at + count] = [before | {letter} for before in blocks]

    async def flush(self) -> None:
        await self.request(self.rig.device.flush())

    async def read(self) -> None:
        await self.request(self._read())

    async def _read(self) -> None:
        data = await self.rig.content()
        for at, allowed in enumerate(self.blocks):
            block = data[at * BLOCK : (at + 1) * BLOCK]
            assert block == block[:1] * BLOCK
            assert block[0] in allowed, (at, block[0], allowed)

    def lose(self, number: int, operations: tuple[str, ...], *, after: bool) -> None:
        self.heal()
        self.outage = self.rig.lose(number, *operations)
        self.outage.after = after

    def heal(self) -> None:
        if self.outage is not None:
            self.rig.faults.remove(self.outage)
            self.outage = None

    def switch(self, *, attached: bool) -> None:
        """Take EN out or put it in."""
        standby = self.rig.queue.standby
        if attached:
            standby.attach()
            self.state = State.OFF if self.state is State.NOT_SUPPORTED else self.state
        else:
            standby.detach()
            self.state = State.NOT_SUPPORTED

    def clear_aborted(self) -> None:
        self.rig.queue.set_aborted(False)
        self.aborted = False

    async def replace(self, replacing: Awaitable[None]) -> None:
        lost = self.state is State.ON or self.aborted or self.rig.queue.loss is not None
        generation = self.rig.queue.generation
        error = await error_of(replacing)
        assert self.rig.queue.generation == generation + (error is None)
        if error is not None:
            # What a healthy top answers while it is settled counts; what opening it again meets (here: reads) does not.
            if not lost and isinstance(error, BackendError) and error.operation != "read":
                self.meets(BackendError(error.errno, "fsync", TOP))
            return
        self.aborted = False
        self.state = State.OFF if self.state is State.ON else self.state

    def assert_shown(self) -> None:
        assert (self.rig.state, self.rig.queue.aborted) == (self.state, self.aborted)
        assert self.rig.device.stats.in_flight == 0

    async def assert_recovers(self) -> None:
        """On the same store, which keeps what it acknowledged."""
        self.heal()
        if await errno_of(self.rig.device.reopen()):
            await self.rig.device.reopen()
        self.state, self.aborted = self.rig.state, False
        assert self.state is not State.ON
        await self.read()
        assert await self.rig.device.aclose()
        assert not self.rig.is_marked(self.rig.device.stack.top.path)
        images = {path: self.rig.store.bytes_of(path) for path in STACK}
        self.rig = await rig_of(images)
        await self._read()


Deed = Callable[[Model], Awaitable[None] | None]

writes = st.builds(
    lambda at, count, letter, fua: lambda model: model.write(at, count, letter, fua=fua),
    st.integers(0, BLOCKS - 1),
    st.integers(1, 6),
    st.sampled_from(b"\0xyz"),
    st.booleans(),
)
losses = st.builds(
    lambda number, operations, after: lambda model: model.lose(number, operations, after=after),
    st.sampled_from([errno.EBUSY, errno.ENOTCONN, errno.EIO, errno.ETIMEDOUT, errno.ENOSPC]),
    st.sampled_from(OUTAGES),
    st.booleans(),
)
deeds: st.SearchStrategy[Deed] = st.one_of(
    writes,
    writes,
    losses,
    st.sampled_from(
        [
            Model.read,
            Model.flush,
            Model.heal,
            Model.clear_aborted,
            lambda model: model.switch(attached=True),
            lambda model: model.switch(attached=False),
            lambda model: model.replace(model.rig.device.reopen()),
            lambda model: model.replace(model.rig.device.replace_top(TOP)),
        ]
    ),
)


@given(st.lists(deeds, max_size=25))
async def test_what_was_acknowledged_survives_any_sequence_of_losses_and_recoveries(story: list[Deed]) -> None:
    model = Model(await rig_of(three_deltas()))
    for deed in story:
        waiting = deed(model)
        if waiting is not None:
            await waiting
        model.assert_shown()
    await model.assert_recovers()
