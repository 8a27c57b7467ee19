"""The configuration in force: what a reload adds, removes, changes and keeps, over a store in memory."""

import errno
import json
import os
import select
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ploopfs.bounds import RELOAD_TIMEOUT_S
from ploopfs.cli.configured import FAILED, RELOADED, Configured
from ploopfs.config import Config, load
from ploopfs.device.device import Device
from ploopfs.device.recovery import Manual, Reopen
from ploopfs.device.registry import Registry
from ploopfs.device.standby import State
from ploopfs.device.waiting import OnStandby
from ploopfs.engine.confined import AllowedDirs
from ploopfs.engine.file import Files
from ploopfs.errors import ConfigError, NoSuchDevice, PloopError
from ploopfs.fuse.handles import AttributeHandle, open_file
from ploopfs.image.header import HEADER_BYTES, Header
from ploopfs.scst.module import Scst
from ploopfs.sysfs.nodes import Directory, Node
from ploopfs.sysfs.tree import build
from ploopfs.testing.faulty import Faults, FaultyFiles
from ploopfs.testing.files import MemoryFiles
from tests.device.rig import image

FIRST, SECOND, THIRD = "/store/first.hds", "/store/second.hds", "/store/third.hds"


def device(name: str, path: str, **others: object) -> dict[str, object]:
    return {"name": name, "image": path} | others


PLOOP0, PLOOP1, PLOOP2 = device("ploop0", FIRST), device("ploop1", SECOND), device("ploop2", THIRD)


class Daemon:
    """What serves a configuration, without a mount; `facts` is what the last reload's event said, its empty ones left
    out."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.store, self.faults = MemoryFiles(), Faults()
        for path in (FIRST, SECOND, THIRD):
            self.store.put(path, image({0: b"d"}).build())
        self.registry = Registry(capacity=3)
        self.scst = Scst(self.registry, "/mnt")
        self.tree = build(self.registry, self.scst)
        self.configured: Configured

    def write(self, *devices: dict[str, object], loaded: bool = True, **others: object) -> None:
        self.file.write_text(json.dumps({"scst": {"loaded": loaded}, "devices": devices} | others))

    async def start(self, *devices: dict[str, object], **others: Any) -> None:  # noqa: ANN401 -- of a configuration
        self.write(*devices, **others)
        self.configured = Configured(self.registry, self.scst, load(self.file), self._files)
        await self.configured.start()

    def _files(self, _allowed: AllowedDirs) -> Files:
        return FaultyFiles(self.store, self.faults)

    def read_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No thread reads the file: a clock that jumps would not wait for it."""

        async def read() -> tuple[Config, AllowedDirs]:
            return load(self.file), AllowedDirs()

        monkeypatch.setattr(self.configured, "_read", read)

    async def reload(self, *devices: dict[str, object], **others: Any) -> dict[str, object]:  # noqa: ANN401 -- as above
        self.write(*devices, **others)
        await self.configured.reload()
        return self.facts

    @property
    def facts(self) -> dict[str, object]:
        record = self.registry.events.record(self.registry.events.next_sequence - 1)
        assert record.event in (RELOADED, FAILED), record
        return {name: value for name, value in record.facts.items() if value}

    def __getitem__(self, name: str) -> Device:
        return self.registry.devices[name]

    def node(self, path: str) -> Node:
        node: Node = self.tree
        for name in path.split("/"):
            assert isinstance(node, Directory)
            node = node.children()[name]
        return node

    def is_marked(self, path: str) -> bool:
        return Header.parse(self.store.bytes_of(path)[:HEADER_BYTES], path).is_marked_in_use

    def is_held(self, path: str) -> bool:
        return bool(self.store.images[path].writers or self.store.images[path].readers)


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path / "ploopfs.yaml")


# What comes and goes.


async def test_a_file_that_says_the_same_changes_nothing(daemon: Daemon) -> None:
    await daemon.start(PLOOP0, device("ploop1", SECOND, standby=True, recovery="reopen"))
    before = dict(daemon.registry.devices)
    assert await daemon.reload(PLOOP0, device("ploop1", SECOND, standby=True, recovery="reopen")) == {}
    assert daemon.registry.devices == before


async def test_new_devices_come_as_at_the_start(daemon: Daemon) -> None:
    await daemon.start(PLOOP0)
    wanted = device("ploop1", SECOND, standby=True, on_standby="hold", hold_timeout_ms=7, recovery="reopen")
    assert await daemon.reload(PLOOP0, wanted, PLOOP2) == {"added": "ploop1, ploop2"}
    came = daemon["ploop1"]
    assert (came.queue.policy.on_standby, came.queue.policy.timeout_ms) == (OnStandby.HOLD, 7)
    assert (came.queue.standby.state, came.agent.policy) == (State.OFF, Reopen())
    assert daemon["ploop2"].queue.standby.state is State.NOT_SUPPORTED
    assert daemon["ploop2"].diskseq > came.diskseq > daemon["ploop0"].diskseq
    assert await daemon.reload(PLOOP0, wanted, PLOOP2) == {}


async def test_a_device_that_nobody_has_open_goes_and_its_image_is_closed(daemon: Daemon) -> None:
    await daemon.start(PLOOP0, device("ploop1", SECOND, standby=True))
    await daemon["ploop1"].write(0, b"acknowledged")
    assert daemon.is_marked(SECOND)
    assert await daemon.reload(PLOOP0) == {"removed": "ploop1"}
    assert list(daemon.registry.devices) == ["ploop0"]
    assert (daemon.is_marked(SECOND), daemon.is_held(SECOND), list(daemon.scst.core.vdisks)) == (False, False, [])
    assert await daemon.reload(PLOOP0, PLOOP1) == {"added": "ploop1"}
    assert bytes(await daemon["ploop1"].read(0, 12)) == b"acknowledged"


async def test_an_image_may_go_to_another_device_in_one_reload(daemon: Daemon) -> None:
    await daemon.start(PLOOP0)
    assert await daemon.reload(device("ploop5", FIRST)) == {"added": "ploop5", "removed": "ploop0"}


async def open_it(daemon: Daemon) -> None:
    daemon["ploop1"].opened()


async def suspend_it(daemon: Daemon) -> None:
    await daemon["ploop1"].queue.suspend()


async def export_it(daemon: Daemon) -> None:
    daemon.scst.attach(daemon["ploop1"])
    daemon.scst.core.manage_targets("add_target iqn.x")
    daemon.scst.core.iscsi.targets["iqn.x"].group.manage_luns("add ploop1 0", daemon.scst.core.vdisks)


async def lose_it(daemon: Daemon) -> None:
    daemon.scst.attach(daemon["ploop1"])
    await daemon["ploop1"].write(0, b"x" * 512)
    daemon.faults.on(SECOND, daemon.faults.fail(errno.ENOTCONN))
    with pytest.raises(PloopError):
        await daemon["ploop1"].flush()


async def fail_its_flush(daemon: Daemon) -> None:
    await daemon["ploop1"].write(0, b"x" * 512)
    daemon.faults.on(SECOND, daemon.faults.fail(errno.EIO, "fsync"))


USES = {
    "it is open (1 times)": open_it,
    "an operation on it is under way, or it is suspended": suspend_it,
    "SCST has it as ploop1, iscsi/iqn.x/luns/0": export_it,
    "its storage is lost, and 512 bytes wait to be written again": lose_it,
    "/store/second.hds: fsync: EIO (Input/output error)": fail_its_flush,
}


@pytest.mark.expects_warnings
@pytest.mark.parametrize("why", USES)
async def test_a_device_with_a_use_or_with_data_that_are_nowhere_else_stays_and_the_reason_is_told(
    daemon: Daemon, why: str
) -> None:
    await daemon.start(PLOOP0, PLOOP1)
    there = daemon["ploop1"]
    await USES[why](daemon)
    before = (there.queue.standby.state, list(daemon.scst.core.vdisks), len(there.unflushed))
    assert await daemon.reload(PLOOP0) == {"kept": f"ploop1: {why}"}
    assert daemon["ploop1"] is there
    assert (there.queue.standby.state, list(daemon.scst.core.vdisks), len(there.unflushed)) == before
    assert daemon.is_held(SECOND)


@pytest.mark.expects_warnings
async def test_what_was_kept_goes_with_the_next_reload_when_nobody_has_it_any_more(daemon: Daemon) -> None:
    await daemon.start(PLOOP0, PLOOP1)
    daemon["ploop1"].opened()
    assert "kept" in await daemon.reload(PLOOP0)
    assert await daemon.reload(PLOOP0, PLOOP1) == {}, "it is the file's again"
    assert "kept" in await daemon.reload(PLOOP0)
    daemon["ploop1"].released()
    assert await daemon.reload(PLOOP0) == {"removed": "ploop1"}


@pytest.mark.expects_warnings
async def test_a_device_that_is_opened_while_it_is_flushed_stays(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    await daemon.start(PLOOP0, PLOOP1)
    daemon.read_at_once(monkeypatch)
    await daemon["ploop1"].write(0, b"x")
    rule = daemon.faults.on(SECOND, daemon.faults.pause("fsync"))
    daemon.write(PLOOP0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.configured.reload)
        await wait_all_tasks_blocked()
        assert rule.hits, "it is being flushed"
        daemon["ploop1"].opened()
        assert rule.released is not None
        rule.released.set()
    assert daemon.facts == {"kept": "ploop1: it is open (1 times)"}
    daemon["ploop1"].released()


@pytest.mark.expects_warnings
async def test_a_storage_that_does_not_flush_is_waited_for_in_bounds_and_the_device_stays(
    daemon: Daemon, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert autojump_clock.autojump_threshold == 0
    await daemon.start(PLOOP0, PLOOP1)
    daemon.read_at_once(monkeypatch)
    await daemon["ploop1"].write(0, b"x")
    daemon.faults.on(SECOND, daemon.faults.pause("fsync"))
    assert await daemon.reload(PLOOP0) == {"kept": f"ploop1: its storage did not flush within {RELOAD_TIMEOUT_S} s"}
    assert trio.current_time() >= RELOAD_TIMEOUT_S


@pytest.mark.expects_warnings
async def test_an_image_that_cannot_be_opened_is_told_and_tried_again_by_the_next_reload(daemon: Daemon) -> None:
    await daemon.start(PLOOP0)
    rule = daemon.faults.on(SECOND, daemon.faults.fail(errno.ENOTCONN, "open"))
    facts = await daemon.reload(PLOOP0, PLOOP1, PLOOP2)
    assert facts == {
        "added": "ploop2",
        "failed": "ploop1: /store/second.hds: open: ENOTCONN (Transport endpoint is not connected)",
    }
    daemon.faults.remove(rule)
    assert await daemon.reload(PLOOP0, PLOOP1, PLOOP2) == {"added": "ploop1"}


@pytest.mark.expects_warnings
async def test_a_storage_that_does_not_answer_an_open_is_waited_for_in_bounds(
    daemon: Daemon, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert autojump_clock.autojump_threshold == 0
    await daemon.start(PLOOP0)
    daemon.read_at_once(monkeypatch)
    daemon.faults.on(SECOND, daemon.faults.pause("read"))
    facts = await daemon.reload(PLOOP0, PLOOP1, PLOOP2)
    assert facts == {"added": "ploop2", "failed": f"ploop1: its storage did not answer within {RELOAD_TIMEOUT_S} s"}
    assert not daemon.is_held(SECOND), "the lock is given back"


@pytest.mark.expects_warnings
async def test_more_devices_than_the_mount_has_room_for_are_refused(daemon: Daemon) -> None:
    await daemon.start(PLOOP0, PLOOP1)
    facts = await daemon.reload(PLOOP0, PLOOP1, PLOOP2, device("ploop3", "/store/fourth.hds"))
    assert facts == {"added": "ploop2", "failed": "ploop3: 3 devices are all that this mount has room for"}


@pytest.mark.expects_warnings
async def test_a_device_whose_name_scst_has_for_another_is_not_left_behind(daemon: Daemon) -> None:
    await daemon.start(PLOOP0)
    daemon.scst.core.add_device(*_as("ploop1", "/dev/ploop0"))
    facts = await daemon.reload(PLOOP0, device("ploop1", SECOND, standby=True))
    assert facts == {"failed": "ploop1: device ploop1 exists already"}
    assert (list(daemon.registry.devices), daemon.is_held(SECOND)) == (["ploop0"], False)


def _as(name: str, filename: str) -> tuple[Any, str, str]:
    from ploopfs.scst.handlers import BLOCKIO  # noqa: PLC0415 -- one test's

    return BLOCKIO, name, f"filename={filename}"


# What changes in a device that stays.


async def test_keys_that_can_change_do_and_the_device_is_the_same(daemon: Daemon) -> None:
    await daemon.start(PLOOP0)
    there = daemon["ploop0"]
    wanted = device("ploop0", FIRST, on_standby="hold", hold_timeout_ms=5, recovery={"reopen": True, "attempts": 3})
    facts = await daemon.reload(wanted | {"standby": True})
    assert facts == {"changed": "ploop0.on_standby, ploop0.hold_timeout_ms, ploop0.recovery, ploop0.standby"}
    assert daemon["ploop0"] is there
    assert (there.queue.policy.on_standby, there.queue.policy.timeout_ms) == (OnStandby.HOLD, 5)
    assert (there.agent.policy, there.agent.patience.attempts) == (Reopen(), 3)
    assert there.queue.standby.state is State.OFF
    facts = await daemon.reload(PLOOP0)
    assert len(str(facts["changed"]).split(", ")) == 4
    assert (there.queue.policy.on_standby, there.queue.policy.timeout_ms) == (OnStandby.FAIL, 300_000)
    assert (there.agent.policy, there.queue.standby.state) == (Manual(), State.NOT_SUPPORTED)


@pytest.mark.expects_warnings
async def test_what_changes_of_a_device_that_an_operator_removed_is_told_and_the_rest_is_done(daemon: Daemon) -> None:
    await daemon.start(PLOOP0, PLOOP1)
    await daemon.registry.remove("ploop0")
    facts = await daemon.reload(PLOOP0 | {"on_standby": "hold"}, PLOOP1 | {"on_standby": "hold"}, PLOOP2)
    gone = "ploop0.on_standby: it was removed by somebody else"
    assert facts == {"changed": "ploop1.on_standby", "added": "ploop2", "failed": gone}


async def test_what_an_operator_has_set_stays_unless_the_file_says_something_new(daemon: Daemon) -> None:
    await daemon.start(PLOOP0)
    daemon["ploop0"].queue.set_on_standby(OnStandby.HOLD)
    assert await daemon.reload(PLOOP0, PLOOP1) == {"added": "ploop1"}
    assert daemon["ploop0"].queue.policy.on_standby is OnStandby.HOLD


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    ("key", "value"),
    [("image", SECOND), ("read_only", True), ("dm_uuid", "U")],
)
async def test_a_key_that_cannot_change_needs_a_remount_and_is_told_each_time(
    daemon: Daemon, key: str, value: object
) -> None:
    before = device("dm-0", FIRST, flavour="vz9") if key.startswith("dm_") else PLOOP0
    await daemon.start(before)
    there = daemon[str(before["name"])]
    for _ in range(2):
        assert await daemon.reload(before | {key: value}) == {"remount": f"{before['name']}.{key}"}
    assert daemon[str(before["name"])] is there
    assert await daemon.reload(before) == {}


@pytest.mark.expects_warnings
async def test_limits_need_a_remount_and_a_device_that_comes_has_those_of_the_mount(daemon: Daemon) -> None:
    await daemon.start(PLOOP0, limits={"requests_per_device": 7})
    facts = await daemon.reload(PLOOP0, PLOOP1, limits={"requests_per_device": 9, "held_mib": 1})
    assert facts == {"added": "ploop1", "remount": "limits.requests_per_device, limits.held_mib"}
    assert daemon["ploop1"].queue.bounds.requests == 7


@pytest.mark.expects_warnings
async def test_what_serves_the_disks_needs_a_remount(daemon: Daemon) -> None:
    await daemon.start(PLOOP0)
    assert await daemon.reload(PLOOP0, data_plane="pyfuse3") == {"remount": "data_plane"}


async def test_a_device_that_comes_is_told_of_when_it_is_served_as_all_others_are(daemon: Daemon) -> None:
    await daemon.start(PLOOP0)
    served: list[str] = []

    async def wait_served(device: Device) -> None:
        await trio.lowlevel.checkpoint()
        assert daemon.registry.devices[device.name] is device
        served.append(device.name)

    daemon.configured = Configured(
        daemon.registry, daemon.scst, daemon.configured.config, daemon._files, wait_served=wait_served
    )
    assert await daemon.reload(PLOOP0, PLOOP1) == {"added": "ploop1"}
    assert served == ["ploop1"]


async def test_scst_is_loaded_before_a_device_is_attached_and_unloaded_when_none_is_any_more(daemon: Daemon) -> None:
    await daemon.start(PLOOP0, loaded=False)
    armed = device("ploop0", FIRST, standby=True)
    assert await daemon.reload(armed, loaded=True) == {"changed": "scst.loaded, ploop0.standby"}
    assert (daemon.scst.loaded, daemon["ploop0"].queue.standby.armed) == (True, True)
    assert await daemon.reload(PLOOP0, loaded=False) == {"changed": "ploop0.standby, scst.loaded"}
    assert (daemon.scst.loaded, daemon.registry.key.enabled) == (False, False)


@pytest.mark.expects_warnings
async def test_scst_stays_loaded_under_a_device(daemon: Daemon) -> None:
    await daemon.start(device("ploop0", FIRST, standby=True))
    facts = await daemon.reload(device("ploop0", FIRST, standby=True), loaded=False)
    assert facts == {"failed": "scst.loaded: module scst is in use by ploop0"}
    assert daemon.scst.loaded


# Mistakes.


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("devices: [{name: ploop9, image: a}]\nzebra: 1\nscst: {loaded: maybe}", [":2: zebra:", ":3: scst.loaded:"]),
        ("devices: [", [":1: not YAML that can be read here"]),
        (None, [": cannot be read: No such file"]),
        ("", [": devices: is missing, expected the list of them, which is [] where none is wanted"]),
        ("# devices:", [": devices: is missing"]),
        ("scst: {loaded: true}", [": devices: is missing"]),
        ("devices:", [":1: devices: is empty"]),
    ],
)
async def test_a_file_with_mistakes_changes_nothing_and_every_mistake_is_told_with_its_line(
    daemon: Daemon, text: str | None, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    await daemon.start(PLOOP0)
    there = dict(daemon.registry.devices)
    if text is None:
        daemon.file.unlink()
    else:
        daemon.file.write_text(text)
    await daemon.configured.reload()
    assert daemon.registry.events.record(daemon.registry.events.next_sequence - 1).event == FAILED
    mistakes = str(daemon.facts["text"]).split("\n")
    assert len(mistakes) == len(told)
    assert all(mistake.startswith(f"{daemon.file}{part}") for part, mistake in zip(told, mistakes, strict=True))
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == [f"not reloaded: {mistake}" for mistake in mistakes]
    assert daemon.registry.devices == there
    assert await daemon.reload(PLOOP0, PLOOP1) == {"added": "ploop1"}


async def test_a_file_that_says_that_there_are_no_devices_takes_them_away(daemon: Daemon) -> None:
    await daemon.start(PLOOP0)
    daemon.file.write_text("devices: []\nscst: {loaded: true}")
    await daemon.configured.reload()
    assert daemon.facts == {"removed": "ploop0"}


async def test_the_first_device_that_cannot_be_opened_ends_the_start(daemon: Daemon) -> None:
    with pytest.raises(ConfigError, match=r"ploopfs.yaml: devices\[1\] \(ploop1\): /store/none.hds: stat: ENOENT"):
        await daemon.start(PLOOP0, device("ploop1", "/store/none.hds"))


@pytest.mark.expects_warnings
async def test_a_file_on_a_store_that_hangs_is_waited_for_in_bounds(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO without a writer is such a file, and the thread that waits ends when somebody writes."""
    await daemon.start(PLOOP0)
    daemon.file.unlink()
    os.mkfifo(daemon.file)
    monkeypatch.setattr("ploopfs.cli.configured.RELOAD_TIMEOUT_S", 0.05)
    await daemon.configured.reload()
    assert daemon.facts == {"text": f"{daemon.file}: could not be read within 0.05 s"}
    with daemon.file.open("w") as writer:
        writer.write("{}")


# Who asks.


async def test_several_that_ask_before_it_begins_get_one_reload_and_who_asks_meanwhile_another(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    await daemon.start(PLOOP0)
    began: list[trio.Event] = []

    async def reload() -> None:
        began.append(trio.Event())
        await began[-1].wait()

    monkeypatch.setattr(daemon.configured, "reload", reload)
    daemon.configured.ask_reload()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.configured.run)
        daemon.configured.ask_reload()
        await wait_all_tasks_blocked()
        assert len(began) == 1
        daemon.configured.ask_reload()
        daemon.configured.ask_reload()
        began[0].set()
        await wait_all_tasks_blocked()
        assert len(began) == 2
        began[1].set()
        await wait_all_tasks_blocked()
        assert len(began) == 2
        nursery.cancel_scope.cancel()


@pytest.mark.expects_warnings
async def test_a_bug_in_a_reload_does_not_end_the_daemon(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await daemon.start(PLOOP0)

    async def broken() -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(daemon.configured, "reload", broken)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.configured.run)
            daemon.configured.ask_reload()
            await wait_all_tasks_blocked()
            assert "met a bug" in caplog.text
            patched.undo()
            daemon.write(PLOOP0, PLOOP1)
            daemon.configured.ask_reload()
            with trio.fail_after(10):
                while "ploop1" not in daemon.registry.devices:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


# The tree.


async def test_the_nodes_of_a_device_that_went_are_gone_and_those_of_one_that_comes_are_new(daemon: Daemon) -> None:
    await daemon.start(PLOOP0, PLOOP1)
    paths = ("dev/ploop1", "sys/devices/virtual/block/ploop1", "sys/devices/virtual/block/ploop1/queue/standby")
    before = [daemon.node(path) for path in paths]
    await daemon.reload(PLOOP0)
    for directory in ("dev", "sys/block", "sys/class/block", "sys/devices/virtual/block", "sys/kernel/debug/ploopfs"):
        listing = daemon.node(directory)
        assert isinstance(listing, Directory)
        assert list(listing.children()) == ["ploop0"]
    await daemon.reload(PLOOP0, PLOOP1)
    assert all(daemon.node(path) is not old for path, old in zip(paths, before, strict=True))


async def test_a_device_is_out_of_the_tree_as_soon_as_it_begins_to_go(daemon: Daemon, nursery: trio.Nursery) -> None:
    await daemon.start(PLOOP0, PLOOP1)
    directories = [daemon.node(path) for path in ("sys/block", "sys/devices/virtual/block", "dev")]
    listed = [list(each.children()) for each in directories if isinstance(each, Directory)]
    assert listed == 3 * [["ploop0", "ploop1"]]
    pause = daemon.faults.on(FIRST, daemon.faults.pause("fsync"))
    nursery.start_soon(daemon.registry.aclose)
    await wait_all_tasks_blocked()
    assert [list(each.children()) for each in directories if isinstance(each, Directory)] == 3 * [[]]
    assert pause.released is not None
    pause.released.set()


async def test_a_disk_that_was_looked_up_and_went_cannot_be_opened(daemon: Daemon) -> None:
    """The kernel has its inode still: the open comes after the name is gone."""
    await daemon.start(PLOOP0, PLOOP1)
    node, there = daemon.node("dev/ploop1"), daemon["ploop1"]
    open_file(node, os.O_RDWR).release()
    await daemon.reload(PLOOP0)
    with pytest.raises(NoSuchDevice) as raised:
        open_file(node, os.O_RDWR)
    assert (raised.value.errno, there.open_count) == (errno.ENODEV, 0)


async def test_who_waits_for_an_attribute_of_a_device_that_goes_is_woken_and_reads_enodev(daemon: Daemon) -> None:
    await daemon.start(PLOOP0, device("dm-0", SECOND, flavour="vz9"))

    class Waiting:
        woken = 0

        def notify(self) -> None:
            self.woken += 1

    directory = "sys/devices/virtual/block/dm-0"
    names = ("queue/standby", "ploopfs/generation", "ploopfs/held", "ploopfs/agent", "dm/suspended")
    waiting = {name: Waiting() for name in names}
    handles: dict[str, AttributeHandle] = {}
    for name in names:
        handle = open_file(daemon.node(f"{directory}/{name}"), os.O_RDONLY)
        assert isinstance(handle, AttributeHandle)
        await handle.read(0, 100)
        assert not handle.poll(waiting[name]) & select.POLLERR  # type: ignore[arg-type]  # stands for pyfuse3's
        handles[name] = handle
    assert await daemon.reload(PLOOP0) == {"removed": "dm-0"}
    for name in names:
        assert waiting[name].woken == 1, name
        assert handles[name].poll(None) & select.POLLERR
        with pytest.raises(NoSuchDevice):
            await handles[name].read(0, 100)
