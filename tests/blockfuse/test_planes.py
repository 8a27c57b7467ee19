"""The own connections of devices, over a machine that mounts on paper and connections that serve nobody."""

import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.blockfuse.mounting import Mounted
from ploopfs.blockfuse.plane import CONNECTION, OwnPlane
from ploopfs.blockfuse.planes import Planes
from ploopfs.bounds import CONNECTION_TIMEOUT_S
from ploopfs.device.flavour import VZ7
from ploopfs.device.registry import Registry
from ploopfs.errors import Busy, MountError, NoSuchDevice, NotPermitted, PermissionDenied, PloopError
from ploopfs.fuse.handles import open_file
from ploopfs.scst.module import Scst
from ploopfs.sysfs.nodes import Directory, Disk
from ploopfs.sysfs.plane import Connection
from ploopfs.sysfs.tree import build
from ploopfs.testing.files import MemoryFiles
from tests.device.rig import image

HANG_S = 20

ATTACHED, ABORTED, DETACHED = Connection.ATTACHED, Connection.ABORTED, Connection.DETACHED


@dataclass(eq=False, slots=True)
class Carrier:
    """Serves until it is told that it was unmounted or cut off. `pending`: the storage has not answered."""

    fd: int
    disk: Disk
    agrees: bool = True
    over: trio.Event = field(default_factory=trio.Event)
    answered: trio.Event = field(default_factory=trio.Event)
    pending: bool = False
    bug: bool = False
    closed: bool = False
    ended: bool = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        if not self.agrees:
            raise MountError("the kernel is too old")
        task_status.started()
        await self.over.wait()
        if self.bug:
            raise RuntimeError("a bug")
        if self.pending:
            await self.answered.wait()

    @property
    def is_closed(self) -> bool:
        return self.closed

    def end(self) -> None:
        self.ended = True
        self.over.set()

    def close(self) -> None:
        self.closed = True
        self.over.set()


class System:
    """A table of mounts. A file in `refused` cannot be mounted over, one in `busy` is in use; `gate` is where a mount
    waits for the tree."""

    def __init__(self) -> None:
        self.table: dict[int, str] = {}
        self.calls: list[str] = []
        self.refused: dict[str, Exception] = {}
        self.busy: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()
        self._numbers = 100

    def mount_over(self, file: str, *, source: str) -> Mounted:
        assert self.gate.wait(60)
        with self._lock:
            self.calls.append(f"mount {file} {source}")
            if file in self.refused:
                raise self.refused[file]
            self._numbers += 1
            self.table[self._numbers] = file
            return Mounted(-self._numbers, self._numbers)

    def unmount(self, file: str, number: int, *, lazily: bool = False) -> None:
        self.calls.append(f"unmount {file}{' lazily' * lazily}")
        if file in self.busy and not lazily:
            raise Busy("its mount is busy")
        assert self.table.get(number, file) == file
        self.table.pop(number, None)

    def is_mounted(self, file: str, number: int) -> bool:  # noqa: ARG002 -- of a system
        return number in self.table


class Scene:
    """Two devices, whose own connections are wanted; `carriers` in the order in which they were made."""

    def __init__(self, *, wanted: bool = True) -> None:
        self.system = System()
        self.carriers: list[Carrier] = []
        self.agrees = True
        self.registry = Registry()
        self.planes = Planes(self.registry, "/mnt", self.system, self._carry, wanted=wanted)
        self.tree = build(self.registry, Scst(self.registry), planes=self.planes.of)

    def _carry(self, disk: Disk) -> Callable[[int], Carrier]:
        def carrier(fd: int) -> Carrier:
            self.carriers.append(Carrier(fd, disk, self.agrees))
            return self.carriers[-1]

        return carrier

    async def add(self, name: str) -> None:
        store = MemoryFiles()
        store.put("/store/image", image({0: b"d"}).build())
        await self.registry.add(name, flavour=VZ7, image="/store/image", files=store)

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[None]:
        """Every device is there, as at the start of a daemon; nothing is open at the end."""
        disks = self.tree.children()["dev"]
        assert isinstance(disks, Directory)
        async with self.planes.carrying(disks.children):
            await self.planes.wait_attached(*self.registry.devices.values())
            yield
            self.planes.end()

    def plane(self, name: str = "ploop0") -> OwnPlane:
        device = self.registry.devices[name]
        return self.planes._planes[device]

    @property
    def states(self) -> list[str]:
        """Of the devices, as their events have told."""
        events = self.registry.events
        told = (record for record in events.since(events.first_sequence) if record.event == CONNECTION)
        return [f"{record.device} {record.facts['state']}: {record.facts['text']}" for record in told]


@pytest.fixture
async def scene() -> Scene:
    scene = Scene()
    for name in ("ploop0", "ploop1"):
        await scene.add(name)
    return scene


async def became(plane: OwnPlane, state: Connection) -> None:
    """However long a thread takes; the bound only ends a test that fails."""
    with trio.fail_after(HANG_S):
        while plane.connection is not state:
            changed = trio.Event()
            forget = plane.changed.subscribe(changed.set)
            await changed.wait()
            forget()


# Attached from the start.


async def test_every_disk_is_mounted_over_its_file_and_served_through_what_that_gave(scene: Scene) -> None:
    async with scene.mounted():
        assert sorted(scene.system.table.values()) == ["/mnt/dev/ploop0", "/mnt/dev/ploop1"]
        assert "mount /mnt/dev/ploop0 ploop0" in scene.system.calls
        assert {carrier.fd for carrier in scene.carriers} == {-number for number in scene.system.table}
        assert {carrier.disk.device for carrier in scene.carriers} == set(scene.registry.devices.values())
        assert [scene.plane(name).connection for name in ("ploop0", "ploop1")] == [ATTACHED] * 2
        assert scene.states == [], "that a disk is served as it is to be is no news"


async def test_the_node_that_is_served_is_the_one_of_the_tree(scene: Scene) -> None:
    dev = scene.tree.children()["dev"]
    assert isinstance(dev, Directory)
    async with scene.mounted():
        served = {id(carrier.disk) for carrier in scene.carriers}
        assert served == {id(dev.children()[name]) for name in ("ploop0", "ploop1")}


async def test_who_wants_none_gets_none_and_may_ask_for_one() -> None:
    scene = Scene(wanted=False)
    await scene.add("ploop0")
    async with scene.mounted():
        assert (scene.system.calls, scene.registry.events.next_sequence) == ([], 2)
        scene.tree.children()["dev"].children()  # type: ignore[union-attr]  # as a lookup does
        await scene.plane().wait_attached()
        assert scene.plane().connection is ATTACHED


async def test_what_no_disk_can_have_is_tried_once_and_told_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.system.refused = {f"/mnt/dev/ploop{number}": MountError("not here") for number in range(2)}
    with caplog.at_level(logging.INFO, "ploopfs.blockfuse"):
        async with scene.mounted():
            assert scene.system.calls == ["mount /mnt/dev/ploop0 ploop0"]
            assert scene.states == ["ploop0 detached: not here", "ploop1 detached: not here"]
            assert scene.plane("ploop1").connection is DETACHED
            scene.system.refused = {}
            await scene.add("ploop2")
            await scene.planes.wait_attached(scene.registry.devices["ploop2"])
            assert scene.plane("ploop2").connection is ATTACHED, "another day, another try"
    told = "ploop0: no connection of its own, it is served by the tree: not here"
    said = [record.getMessage() for record in caplog.records if record.name.startswith("ploopfs.blockfuse")]
    assert said == [told]


async def test_what_one_disk_cannot_have_others_may(scene: Scene) -> None:
    scene.system.refused = {"/mnt/dev/ploop0": PermissionDenied("read-only")}
    async with scene.mounted():
        assert scene.states == ["ploop0 detached: read-only"]
        assert scene.plane("ploop1").connection is ATTACHED


async def test_a_kernel_that_does_not_agree_leaves_no_mount(scene: Scene) -> None:
    scene.agrees = False
    async with scene.mounted():
        assert scene.system.table == {}
        assert scene.plane().connection is DETACHED
        assert scene.states[-1].endswith("detached: the kernel is too old")
        assert scene.carriers[0].closed


# Commands.


async def test_an_aborted_connection_stays_mounted_and_the_next_one_takes_its_place(scene: Scene) -> None:
    async with scene.mounted():
        plane, first = scene.plane(), scene.carriers[0]
        [number] = [number for number, file in scene.system.table.items() if file == "/mnt/dev/ploop0"]
        plane.abort()
        assert (plane.connection, first.closed, number in scene.system.table) == (ABORTED, True, True)
        plane.abort()
        assert plane.connection is ABORTED
        await plane.wait_attached()
        assert plane.connection is ATTACHED
        assert scene.system.calls[-2:] == ["unmount /mnt/dev/ploop0 lazily", "mount /mnt/dev/ploop0 ploop0"]
        assert number not in scene.system.table
        assert not scene.carriers[1].closed, "of the other disk"
        assert [told.split(":")[0] for told in scene.states] == [f"ploop0 {state.value}" for state in (
            ABORTED, DETACHED, ATTACHED
        )]


async def test_what_an_aborted_connection_still_writes_is_waited_for_in_bounds(
    scene: Scene, mock_clock: MockClock
) -> None:
    """A write of before must not land on what is written through the next connection."""
    async with scene.mounted():
        plane, first = scene.plane(), scene.carriers[0]
        first.pending = True
        plane.abort()
        refusal = "requests of the connection that was cut off are still under way"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, Busy, refusal, plane.wait_attached)
            await wait_all_tasks_blocked()
            assert plane.connection is ABORTED
            mock_clock.jump(CONNECTION_TIMEOUT_S)
        await wait_all_tasks_blocked()
        assert (plane.connection, scene.system.calls[-1].startswith("mount")) == (ABORTED, True)
        with pytest.raises(Busy, match="cut off are still under way"):
            open_file(first.disk, os.O_RDWR)  # as the tree does, where somebody has unmounted the dead one
        first.answered.set()
        await wait_all_tasks_blocked()
        open_file(first.disk, os.O_RDWR).release()
        await plane.wait_attached()
        assert plane.connection is ATTACHED


async def expect(error: type[PloopError], words: str, work: Callable[[], object]) -> None:
    with pytest.raises(error, match=words):
        await work()  # type: ignore[misc]  # coroutine functions


async def test_a_disk_in_use_keeps_its_connection(scene: Scene) -> None:
    async with scene.mounted():
        plane = scene.plane()
        scene.system.busy = {"/mnt/dev/ploop0"}
        plane.device.opened()
        await expect(Busy, r"its mount is busy, it is open \(1 times\)", plane.wait_detached)
        assert (plane.connection, scene.carriers[0].closed) == (ATTACHED, False)
        plane.device.released()
        scene.system.busy = set()
        await plane.wait_detached()
        assert plane.connection is DETACHED
        assert not scene.carriers[0].closed, "who has it mounted in another name space keeps it"
        await plane.wait_detached()


async def test_of_a_connection_that_is_not_there_nothing_can_be_aborted(scene: Scene) -> None:
    async with scene.mounted():
        await scene.plane().wait_detached()
        with pytest.raises(NotPermitted, match="no connection of its own"):
            scene.plane().abort()


async def test_one_operation_on_a_connection_at_a_time(scene: Scene) -> None:
    async with scene.mounted():
        plane = scene.plane()
        await plane.wait_detached()
        scene.system.gate.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.wait_attached)
            await wait_all_tasks_blocked()
            for command in (plane.wait_attached, plane.wait_detached):
                await expect(Busy, "under way", command)
            with pytest.raises(Busy, match="under way"):
                plane.abort()
            scene.system.gate.set()
        assert plane.connection is ATTACHED


# What others do.


async def test_a_connection_that_others_end_is_told_of_as_what_it_is(scene: Scene) -> None:
    async with scene.mounted():
        one, other = scene.plane(), scene.plane("ploop1")
        by_name = {carrier.disk.device: carrier for carrier in scene.carriers}
        scene.system.table = {
            number: file for number, file in scene.system.table.items() if file != "/mnt/dev/ploop0"
        }
        for plane in (one, other):
            by_name[plane.device].over.set()
        await wait_all_tasks_blocked()
        assert (one.connection, other.connection) == (DETACHED, ABORTED)
        assert sorted(scene.states) == [
            "ploop0 detached: somebody has unmounted it",
            "ploop1 aborted: somebody has cut it off",
        ]
        assert all(carrier.closed for carrier in scene.carriers)
        for plane in (one, other):
            await plane.wait_attached()
            assert plane.connection is ATTACHED


async def test_one_that_others_have_unmounted_lazily_goes_on_beside_the_next(scene: Scene) -> None:
    async with scene.mounted():
        plane, first = scene.plane(), scene.carriers[0]
        scene.system.table.clear()
        await plane.wait_attached()
        assert (len(scene.carriers), first.closed, list(scene.system.table.values())) == (3, False, ["/mnt/dev/ploop0"])


@pytest.mark.expects_warnings
async def test_a_bug_costs_one_disk_its_connection_and_no_other(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async with scene.mounted():
        plane = scene.plane()
        [carrier] = [carrier for carrier in scene.carriers if carrier.disk.device is plane.device]
        carrier.bug = True
        carrier.over.set()
        await wait_all_tasks_blocked()
        assert (plane.connection, scene.plane("ploop1").connection) == (ABORTED, ATTACHED)
        assert "met a bug" in caplog.text


@pytest.mark.expects_warnings
async def test_a_bug_in_an_operation_costs_that_operation(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async with scene.mounted():
        plane = scene.plane()
        await plane.wait_detached()
        scene.system.refused = {"/mnt/dev/ploop0": RuntimeError("a bug")}
        await expect(Busy, "it was given up", plane.wait_attached)
        assert (plane.connection, scene.plane("ploop1").connection) == (DETACHED, ATTACHED)
        assert "met a bug" in caplog.text
        scene.system.refused = {}
        await plane.wait_attached()
        assert plane.connection is ATTACHED


@pytest.mark.parametrize("command", ["wait_attached", "wait_detached"])
async def test_what_one_still_writes_that_others_have_cut_off_is_waited_for_too(
    scene: Scene, mock_clock: MockClock, command: str
) -> None:
    async with scene.mounted():
        plane, first = scene.plane(), scene.carriers[0]
        first.pending = True
        first.close()
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, Busy, "cut off are still under way", getattr(plane, command))
            await wait_all_tasks_blocked()
            mock_clock.jump(CONNECTION_TIMEOUT_S)
        assert len(scene.carriers) == 2
        first.answered.set()
        await wait_all_tasks_blocked()
        assert plane.connection is ABORTED
        await getattr(plane, command)()
        assert plane.connection is (ATTACHED if command == "wait_attached" else DETACHED)


# Devices come and go.


async def test_a_device_that_comes_later_gets_a_connection_and_one_that_goes_loses_it(scene: Scene) -> None:
    async with scene.mounted():
        await scene.add("ploop2")
        await scene.planes.wait_attached(scene.registry.devices["ploop2"])
        plane, carrier = scene.plane("ploop2"), scene.carriers[-1]
        assert (plane.connection, list(scene.system.table.values()).count("/mnt/dev/ploop2")) == (ATTACHED, 1)
        await scene.registry.remove("ploop2")
        await became(plane, DETACHED)
        assert carrier.closed
        assert "/mnt/dev/ploop2" not in scene.system.table.values()
        assert scene.system.calls[-1] == "unmount /mnt/dev/ploop2 lazily"
        assert scene.states == [], "that it was removed says all"
        assert len(scene.planes._planes) == 2


async def test_a_device_that_goes_while_it_is_mounted_leaves_nothing(scene: Scene) -> None:
    async with scene.mounted():
        await scene.add("ploop2")
        scene.system.gate.clear()
        async with trio.open_nursery() as nursery:
            device = scene.registry.devices["ploop2"]
            nursery.start_soon(scene.planes.wait_attached, device)
            await wait_all_tasks_blocked()
            plane = scene.plane("ploop2")
            await scene.registry.remove("ploop2")
            scene.system.gate.set()
        assert (plane.connection, scene.carriers[-1].closed) == (DETACHED, True)
        assert "/mnt/dev/ploop2" not in scene.system.table.values()
        assert scene.states == [], "nobody is left whom it could concern"
        await expect(NoSuchDevice, "removed", plane.wait_attached)


# The end.


async def test_the_end_answers_what_is_under_way_and_waits_for_no_mount(scene: Scene) -> None:
    async with scene.mounted():
        plane = scene.plane()
        await plane.wait_detached()
        scene.system.gate.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, NotPermitted, "is ending", plane.wait_attached)
            await wait_all_tasks_blocked()
            assert scene.planes.end(), "there is one that serves"
        assert [carrier.ended for carrier in scene.carriers] == [True, True]
        scene.system.gate.set()
    assert "/mnt/dev/ploop0" not in scene.system.table.values(), "it came too late"
    assert not scene.planes.end()
    await expect(NotPermitted, "not served", plane.wait_attached)


async def test_a_disk_that_is_open_elsewhere_is_served_when_the_tree_has_gone(scene: Scene) -> None:
    attached, finished = trio.Event(), trio.Event()

    async def serve() -> None:
        disks = scene.tree.children()["dev"]
        assert isinstance(disks, Directory)
        async with scene.planes.carrying(disks.children):
            await scene.planes.wait_attached(*scene.registry.devices.values())
            attached.set()
        finished.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await attached.wait()
        scene.system.table.clear()
        scene.carriers[0].over.set()
        await wait_all_tasks_blocked()
        assert not finished.is_set()
        scene.carriers[1].over.set()
        await finished.wait()
