"""With `preallocates` the space of a new cluster is taken before anything is written to it."""

import errno
import os
from pathlib import Path

import pytest

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.os_file import OsFiles
from ploopfs.errors import BackendError
from ploopfs.image.check import Verdict
from ploopfs.testing.images import ImageBuilder
from tests.engine.disk import verdict
from tests.engine.rig import CLUSTER, NEW, TOP, Rig


async def test_the_file_grows_by_allocation_before_the_data_are_written(alone: Rig) -> None:
    stack = await alone.open()
    stack.top.preallocates = True
    alone.journal.entries.clear()
    await stack.write(0, NEW)
    (allocated,), (data, *_) = alone.journal.of("fallocate"), alone.journal.of("write")
    assert (allocated.offset, allocated.length) == (2 * CLUSTER, CLUSTER)
    assert allocated.ended_before(data)
    assert alone.journal.of("truncate") == []
    stack.top.preallocates = False
    await stack.write(CLUSTER, NEW)
    assert len(alone.journal.of("truncate")) == 1


async def test_old_bytes_are_overwritten_and_not_punched_out(alone: Rig) -> None:
    stack = await alone.open()
    await stack.discard(3 * CLUSTER, CLUSTER)
    stack.top.preallocates = True
    alone.memory.images[TOP].data[CLUSTER : 2 * CLUSTER] = b"?" * CLUSTER
    alone.journal.entries.clear()
    await stack.write(5 * CLUSTER + 100, NEW)
    assert alone.journal.of("punch hole") == []
    assert await stack.read(5 * CLUSTER, CLUSTER) == bytes(100) + NEW + bytes(CLUSTER - 100 - len(NEW))


@pytest.mark.parametrize("after", [False, True], ids=["refused", "done-in-part"])
async def test_a_full_disk_is_told_before_anything_is_written_and_leaves_a_sound_image(alone: Rig, after: bool) -> None:
    stack = await alone.open()
    stack.top.preallocates = True
    alone.faults.fail(errno.ENOSPC, "fallocate", count=1, after=after)
    alone.journal.entries.clear()
    with pytest.raises(BackendError) as raised:
        await stack.write(0, NEW)
    assert (raised.value.errno, raised.value.operation) == (errno.ENOSPC, "fallocate")
    assert alone.journal.of("write") == []
    await stack.aclose(clean=True)
    assert verdict(alone.top).verdict is Verdict.CLEAN
    assert len(alone.top) == 2 * CLUSTER


@pytest.mark.parametrize("preallocates", [False, True])
async def test_a_real_file_has_the_blocks_of_a_cluster_of_which_little_is_written(
    tmp_path: Path, preallocates: bool
) -> None:
    path = tmp_path / "top.hds"
    path.write_bytes(ImageBuilder(cluster_sectors=2048).build())
    spec = StackSpec((ImageSpec(str(path)),))
    stack = await open_stack(OsFiles(), spec, read_only=False, counters=Counters())
    stack.top.preallocates = preallocates
    await stack.write(5000, NEW)
    allocated = os.stat(path).st_blocks * 512
    await stack.aclose(clean=True)
    assert (allocated >= 2 << 20) is preallocates
    assert verdict(path.read_bytes()).verdict is Verdict.CLEAN
