"""One fsync fails and the store is well again, and nobody has promised to recover the device: nothing is kept that
could be written again, so no later flush may claim success for it."""

import os
from pathlib import Path

import pytest

from tests.mounted.daemon import errno_of, opened, serving
from tests.mounted.disks import BLOCK_BYTES, assert_closed, make_disk
from tests.mounted.flavours import KINDS, VZ7, Kind, name_of

pytestmark = pytest.mark.real


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_a_device_without_en_has_a_failed_flush_stay_failed_until_reopen(tmp_path: Path, kind: Kind) -> None:
    disk = make_disk(tmp_path / "disk", depth=2)
    with serving(tmp_path, kind.configured(disk.directory, standby=False)) as daemon:
        served = kind.of(daemon)
        with opened(served.disk) as fd:
            assert os.pwrite(fd, b"before".ljust(BLOCK_BYTES), 0) == BLOCK_BYTES
            injection = daemon.mountpoint / f"sys/kernel/debug/ploopfs/{kind.device}/error_injection"
            injection.write_text("add,op=FLUSH,errno=EIO,count=1")
            assert errno_of(os.fsync, fd) == "EIO"
            assert ",hits=1," in injection.read_text(), "the store is well from now on"
            assert served.value("queue/standby") == "not supported"
            for _ in range(3):
                if kind is VZ7:  # its aborted state would answer so anyway
                    served.store("pstate/aborted", "0")
                assert errno_of(os.fsync, fd) == "EIO"
                with opened(served.disk) as another:
                    assert errno_of(os.fsync, another) == "EIO"
            served.store("ploopfs/reopen", "1")
            assert os.pwrite(fd, b"after".ljust(BLOCK_BYTES), 0) == BLOCK_BYTES
            os.fsync(fd)
            assert disk.top.read_bytes().count(b"after".ljust(BLOCK_BYTES)) == 1
        assert daemon.end() == 0
    assert_closed(disk.top)
