"""The store dies and comes back under load: both flavours, every policy, every way back."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.mounted.daemon import HOLD_MS, errno_of, serving, until
from tests.mounted.disks import MIB, Disk, assert_closed, by_qemu, make_disk, sums
from tests.mounted.flavours import KINDS, Kind, Served, name_of
from tests.mounted.storage import Bindfs
from tests.mounted.traffic import READERS, WORKERS, Traffic, traffic

pytestmark = pytest.mark.real

STEPS = 30
"""How many calls each worker makes between two outages."""

FLAPS = 6
LONGEST_RECOVERY_S = 0.02
"""About as long as one takes, so that the store dies before, in the middle of it, and afterwards."""


@contextmanager
def under_load(place: Path, bindfs: Bindfs, disk: Disk, kind: Kind, policy: str) -> Iterator[tuple[Served, Traffic]]:
    """Afterwards the image is sound, and the disk as QEMU reads it is what was acknowledged."""
    with serving(place, kind.configured(bindfs.path / "disk", on_standby=policy, hold_timeout_ms=HOLD_MS)) as daemon:
        served = kind.of(daemon)
        with traffic(served.disk, disk, served.attribute("queue/standby")) as load:
            load.wait_steps(STEPS)
            yield served, load
        assert served.disk.read_bytes() == disk.content
        assert daemon.end() == 0
    assert daemon.log.count(f"{kind.device} was switched into the standby mode") == len(kind.recoveries)
    assert_closed(disk.top)
    assert sums(disk.deltas[:-1]) == disk.lower_sums
    assert by_qemu(disk.deltas, place / "raw") == disk.content


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_with_hold_nobody_under_load_notices_an_outage(tmp_path: Path, bindfs: Bindfs, kind: Kind) -> None:
    disk = make_disk(bindfs.bricks / "disk", depth=3, size_bytes=16 * MIB)
    with under_load(tmp_path, bindfs, disk, kind, "hold") as (served, load):
        for recover in kind.recoveries:
            bindfs.kill()
            until(lambda: int(served.value("ploopfs/held")) > READERS, "every reader and a writer held")
            assert served.value("queue/standby") == "on"
            bindfs.remount()
            recover(served, bindfs.path / "disk" / disk.top.name)
            assert served.value("queue/standby") == "off"
            load.wait_steps(STEPS)
        assert not load.errors
        released = [record["requests"] for record in served.daemon.events() if record["event"] == "released"]
        assert [count > READERS for count in released] == [True] * len(kind.recoveries)
        assert [served.value("ploopfs/held"), served.value("ploopfs/held_bytes")] == ["0", "0"]


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_with_fail_nothing_acknowledged_under_load_is_lost(tmp_path: Path, bindfs: Bindfs, kind: Kind) -> None:
    disk = make_disk(bindfs.bricks / "disk", depth=3, size_bytes=16 * MIB)
    with under_load(tmp_path, bindfs, disk, kind, "fail") as (served, load):
        for number, recover in enumerate(kind.recoveries, 1):
            bindfs.kill()
            load.wait_errors(number * WORKERS)
            assert served.value("queue/standby") == "on"
            assert served.value("ploopfs/held") == "0"
            bindfs.remount()
            recover(served, bindfs.path / "disk" / disk.top.name)
            assert served.value("queue/standby") == "off"
            load.wait_steps(STEPS)
        assert load.errors.total() == len(kind.recoveries) * WORKERS, "more than one call of a worker in an outage"
        assert set(load.errors) <= {kind.answer("ENOTCONN"), "EIO"}


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_with_hold_nobody_notices_a_store_that_dies_while_the_device_recovers(
    tmp_path: Path, bindfs: Bindfs, kind: Kind
) -> None:
    """Each time at another point of the recovery; whatever it had done by then, the next attempt succeeds."""
    disk, random = make_disk(bindfs.bricks / "disk", depth=2, size_bytes=16 * MIB), Random(3)
    top = bindfs.path / "disk" / disk.top.name
    with serving(
        tmp_path, kind.configured(bindfs.path / "disk", on_standby="hold", hold_timeout_ms=HOLD_MS)
    ) as daemon:
        served = kind.of(daemon)
        with (
            traffic(served.disk, disk, served.attribute("queue/standby")) as load,
            ThreadPoolExecutor(1) as thread,
        ):
            for _ in range(FLAPS):
                bindfs.kill()
                until(lambda: served.value("queue/standby") == "on", "standby")
                bindfs.remount()
                recovering = thread.submit(errno_of, random.choice(kind.recoveries), served, top)
                wait([recovering], timeout=random.uniform(0, LONGEST_RECOVERY_S))
                bindfs.kill()
                assert recovering.result() in ("success", "ENOTCONN")
                until(lambda: served.value("queue/standby") == "on", "standby")
                bindfs.remount()
                random.choice(kind.recoveries)(served, top)
                load.wait_steps(2)
            assert not load.errors
        assert daemon.end() == 0
    assert_closed(disk.top)
    assert by_qemu(disk.deltas, tmp_path / "raw") == disk.content
