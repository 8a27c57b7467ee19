"""Faults at the storage of a stack: which operations a rule takes, what becomes of them, and that none costs nothing.

The base has clusters 0 and 1 of the disk, the top cluster 2; clusters 3 to 7 are nobody's.
"""

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.file import Files
from ploopfs.engine.inject.grammar import execute
from ploopfs.engine.inject.injector import Injector
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.os_file import OsFile, OsFiles
from ploopfs.engine.stack import Stack
from ploopfs.errors import BackendError, BadValue, PloopError, StorageTimeout
from ploopfs.testing.files import MemoryFiles
from ploopfs.testing.images import ImageBuilder
from tests.engine.rig import BASE, CLUSTER, TOP

SECTORS = CLUSTER // 512
"""Of a cluster."""


class Scene:
    def __init__(self) -> None:
        self.memory = MemoryFiles()
        self.memory.put(BASE, ImageBuilder(8, clusters={0: b"a" * CLUSTER, 1: b"b" * CLUSTER}).build())
        self.memory.put(TOP, ImageBuilder(8, clusters={2: b"t" * CLUSTER}).build())
        self.injector = Injector()
        self.files: Files = self.injector.around(self.memory)
        self.stack: Stack

    async def open(self) -> "Scene":
        spec = StackSpec((ImageSpec(BASE), ImageSpec(TOP)))
        self.stack = await open_stack(self.files, spec, read_only=False, counters=Counters())
        self.injector.follow(lambda: self.stack)
        return self

    def rule(self, command: str) -> None:
        execute(self.injector, f"add,{command}")

    @property
    def hits(self) -> list[int]:
        """Of each rule, the oldest first."""
        return [rule.hits for rule in reversed(self.injector.rules)]


@pytest.fixture
async def scene() -> Scene:
    return await Scene().open()


async def met(call: Awaitable[object]) -> tuple[str, str, str, int, int] | None:
    """What the storage was blamed for: errno, operation, path, offset, length."""
    try:
        await call
    except BackendError as error:
        return errno.errorcode[error.errno], error.operation, error.path, error.offset, error.length
    return None


# --- which operations ---------------------------------------------------------------------------------------------

Request = Callable[[Scene], Awaitable[object]]


@pytest.mark.parametrize(
    ("op", "request_", "blamed"),
    [
        ("READ", lambda s: s.stack.read(0, 512), ("EBUSY", "read", BASE, CLUSTER, 512)),
        ("READ", lambda s: s.stack.read(2 * CLUSTER + 5, 7), ("EBUSY", "read", TOP, CLUSTER + 5, 7)),
        ("WRITE", lambda s: s.stack.write(2 * CLUSTER, b"w" * 512), ("EBUSY", "write", TOP, CLUSTER, 512)),
        ("FLUSH", lambda s: s.stack.flush(), ("EBUSY", "fsync", TOP, 0, 0)),
        ("TRUNCATE", lambda s: s.stack.write(4 * CLUSTER, b"w"), ("EBUSY", "truncate", TOP, 9 * CLUSTER, 0)),
        ("DISCARD", lambda s: s.stack.discard(2 * CLUSTER, CLUSTER), ("EBUSY", "punch hole", TOP, CLUSTER, CLUSTER)),
        ("OPEN", lambda s: s.files.open(TOP, writable=False), ("EBUSY", "open", TOP, 0, 0)),
        ("STAT", lambda s: s.files.is_directory(TOP), ("EBUSY", "stat", TOP, 0, 0)),
        ("STAT", lambda s: s.files.real_path(TOP), ("EBUSY", "stat", TOP, 0, 0)),
        ("LOCK", lambda s: s.stack.top.file.lock(), ("EBUSY", "lock", TOP, 0, 0)),
        ("UNLOCK", lambda s: s.stack.top.file.unlock(), ("EBUSY", "unlock", TOP, 0, 0)),
    ],
)
async def test_an_operation_fails_as_the_storage_would_have_failed_it(
    scene: Scene, op: str, request_: Request, blamed: tuple[str, str, str, int, int]
) -> None:
    before = {path: image.data[:] for path, image in scene.memory.images.items()}
    scene.rule(f"op={op},errno=EBUSY")
    assert await met(request_(scene)) == blamed
    assert {path: image.data for path, image in scene.memory.images.items()} == before
    execute(scene.injector, "removeall")
    # A failed fsync stays failed: that is the delta's own rule, and none of the injector's.
    assert await met(request_(scene)) == (blamed if op == "FLUSH" else None)


async def test_a_rule_for_one_operation_leaves_the_others_alone(scene: Scene) -> None:
    scene.rule("op=FLUSH,errno=EIO")
    assert await scene.stack.read(0, 1) == b"a"
    await scene.stack.write(2 * CLUSTER, b"x")
    assert await met(scene.stack.flush()) == ("EIO", "fsync", TOP, 0, 0)


async def test_a_rule_for_a_level_takes_what_its_file_is_asked_and_no_other(scene: Scene) -> None:
    scene.rule("errno=EIO,level=0")
    assert await scene.stack.read(2 * CLUSTER, 1) == b"t"
    await scene.stack.write(2 * CLUSTER, b"x")
    await scene.stack.flush()
    assert await met(scene.stack.read(CLUSTER, 1)) == ("EIO", "read", BASE, 2 * CLUSTER, 1)
    assert await met(scene.stack.write(CLUSTER, b"x")) == ("EIO", "read", BASE, 2 * CLUSTER, CLUSTER), "copy-up"
    assert await met(scene.files.open(BASE, writable=False)) == ("EIO", "open", BASE, 0, 0)
    assert await met(scene.files.open(TOP, writable=True)) is None


async def test_a_new_image_that_is_opened_for_writing_counts_as_the_top(scene: Scene) -> None:
    scene.memory.put("/other", scene.memory.bytes_of(TOP))
    scene.rule("op=OPEN,errno=EIO,level=1")
    assert await met(scene.files.open("/other", writable=True)) == ("EIO", "open", "/other", 0, 0)
    assert await met(scene.files.open("/other", writable=False)) is None
    scene.rule("op=READ,errno=EIO,level=1")
    execute(scene.injector, "remove,id=1")
    opened = await scene.files.open("/other", writable=True)
    assert await met(opened.read(0, 64)) == ("EIO", "read", "/other", 0, 64), "its header"


async def test_the_newest_rule_that_fits_decides(scene: Scene) -> None:
    scene.rule("op=READ,errno=EIO")
    scene.rule("op=READ,errno=EBUSY,level=1")
    scene.rule("op=READ,errno=ENOTCONN,count=1")
    found = [await met(scene.stack.read(slot * CLUSTER, 1)) for slot in (2, 2, 0)]
    assert [blamed and blamed[0] for blamed in found] == ["ENOTCONN", "EBUSY", "EIO"]
    assert scene.hits == [1, 1, 1]


# --- sectors of the disk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "operation"),
    [
        (lambda s: s.stack.read(8 * 512, 512), "read"),
        (lambda s: s.stack.read(0, 8 * 512 + 1), "read"),
        (lambda s: s.stack.read(15 * 512 + 511, 4096), "read"),
        (lambda s: s.stack.read(0, 3 * CLUSTER), "read"),
        # A copy-up of the cluster meets a bad sector wherever in it the writer writes.
        (lambda s: s.stack.write(CLUSTER - 1, b"x"), "read"),
    ],
)
async def test_sectors_are_those_of_the_disk_wherever_they_lie_in_a_file(
    scene: Scene, request_: Request, operation: str
) -> None:
    scene.rule("errno=EIO,start=8,nr_sectors=8")
    blamed = await met(request_(scene))
    assert blamed is not None
    assert blamed[:3] == ("EIO", operation, BASE)


@pytest.mark.parametrize(
    "request_",
    [
        lambda s: s.stack.read(0, 8 * 512),
        lambda s: s.stack.read(16 * 512, 512),
        lambda s: s.stack.read(CLUSTER, 3 * CLUSTER),
        lambda s: s.stack.write(CLUSTER, b"x"),
        lambda s: s.stack.write(5 * CLUSTER, b"x" * 512),
        lambda s: s.stack.flush(),
        lambda s: s.files.open(BASE, writable=False),
    ],
)
async def test_what_touches_other_sectors_or_none_is_left_alone(scene: Scene, request_: Request) -> None:
    scene.rule("errno=EIO,start=8,nr_sectors=8")
    assert await met(request_(scene)) is None
    assert scene.hits == [0]


@pytest.mark.parametrize(
    ("slot", "operation", "offset"),
    [(2, "write", CLUSTER), (4, "write", 2 * CLUSTER), (1, "write", 2 * CLUSTER)],
    ids=["in place", "a new cluster", "a copied cluster"],
)
async def test_a_write_is_known_by_its_sectors_before_the_map_leads_to_them(
    scene: Scene, slot: int, operation: str, offset: int
) -> None:
    scene.rule(f"op=WRITE,errno=EIO,start={slot * SECTORS},nr_sectors=1")
    blamed = await met(scene.stack.write(slot * CLUSTER, b"x" * 512))
    assert blamed is not None
    assert blamed[:4] == ("EIO", operation, TOP, offset)
    assert await met(scene.stack.write((slot + 3) * CLUSTER, b"x" * 512)) is None


async def test_the_map_and_the_header_are_no_sectors_but_are_taken_by_a_rule_without_them(scene: Scene) -> None:
    scene.rule("op=WRITE,errno=EIO,start=0,skip=1")
    await scene.stack.write(4 * CLUSTER, b"x")
    assert await scene.stack.read(4 * CLUSTER, 1) == b"x", "its data were let pass, and its map page is no sector"
    execute(scene.injector, "removeall")
    scene.rule("op=WRITE,errno=EIO,skip=1")
    assert await met(scene.stack.write(5 * CLUSTER, b"x")) == ("EIO", "write", TOP, 64 + 5 * 4, 4), "its map entry"


async def test_a_discard_of_a_single_delta_is_known_though_the_map_has_let_go_of_the_cluster() -> None:
    memory, injector = MemoryFiles(), Injector()
    memory.put(TOP, ImageBuilder(8, clusters={2: b"t" * CLUSTER}).build())
    spec = StackSpec((ImageSpec(TOP),))
    stack = await open_stack(injector.around(memory), spec, read_only=False, counters=Counters())
    injector.follow(lambda: stack)
    execute(injector, f"add,op=DISCARD,errno=EIO,start={2 * SECTORS},nr_sectors=1")
    assert await met(stack.discard(2 * CLUSTER, CLUSTER)) == ("EIO", "punch hole", TOP, CLUSTER, CLUSTER)


async def test_a_raw_base_is_known_by_its_sectors_from_the_first_on() -> None:
    memory, injector = MemoryFiles(), Injector()
    memory.put(BASE, b"r" * (2 << 20))
    spec = StackSpec((ImageSpec(BASE, raw=True),), 64)
    stack = await open_stack(injector.around(memory), spec, read_only=False, counters=Counters())
    injector.follow(lambda: stack)
    execute(injector, "add,op=READ,errno=EIO,start=0,nr_sectors=1")
    assert await met(stack.read(511, 1)) == ("EIO", "read", BASE, 511, 1)
    assert await met(stack.read(512, 512)) is None


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("level=2,errno=EIO", "level is 2, expected 0 to 1: the levels of the stack"),
        ("start=512,errno=EIO", "start is 512, expected a sector of the disk, which has 512"),
    ],
)
async def test_a_rule_that_could_never_take_anything_is_refused(scene: Scene, command: str, says: str) -> None:
    with pytest.raises(BadValue, match=says):
        scene.rule(command)


# --- how often ----------------------------------------------------------------------------------------------------


async def test_count_ends_a_rule_and_skip_comes_before_it(scene: Scene) -> None:
    scene.rule("op=READ,errno=EIO,skip=2,count=3")
    found = [await met(scene.stack.read(0, 1)) is None for _ in range(8)]
    assert found == [True, True, False, False, False, True, True, True]
    assert scene.hits == [3]


async def test_chance_is_one_in_so_many_and_the_same_ones_for_the_same_seed(scene: Scene) -> None:
    async def drawn(seed: int) -> list[bool]:
        scene.rule(f"op=READ,errno=EIO,chance=4,seed={seed}")
        found = [await met(scene.stack.read(0, 1)) is not None for _ in range(400)]
        execute(scene.injector, "removeall")
        return found

    first, again, other = await drawn(1), await drawn(1), await drawn(2)
    assert first == again != other
    assert 60 < sum(first) < 140


async def test_a_rule_of_chance_that_passes_leaves_the_operation_to_the_next(scene: Scene) -> None:
    scene.rule("op=READ,errno=EIO")
    scene.rule("op=READ,errno=EBUSY,chance=2,seed=3")
    found = [blamed[0] for _ in range(50) if (blamed := await met(scene.stack.read(0, 1))) is not None]
    assert len(found) == 50
    assert set(found) == {"EIO", "EBUSY"}


# --- waits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("and_errno", "blamed"), [("", None), (",errno=EIO", ("EIO", "read", BASE, CLUSTER, 1))])
async def test_a_delay_comes_before_the_answer(
    scene: Scene, autojump_clock: MockClock, and_errno: str, blamed: object
) -> None:
    scene.rule(f"op=READ,delay_ms=1500{and_errno}")
    started_s = autojump_clock.current_time()
    assert await met(scene.stack.read(0, 1)) == blamed
    assert autojump_clock.current_time() - started_s == 1.5


@pytest.mark.parametrize(("and_errno", "blamed"), [("", None), (",errno=EIO", ("EIO", "read", BASE, CLUSTER, 1))])
@pytest.mark.parametrize("removal", ["remove,id=1", "removeall"])
async def test_what_hangs_goes_on_when_the_rule_is_removed(
    scene: Scene, removal: str, and_errno: str, blamed: object, autojump_clock: MockClock
) -> None:
    assert autojump_clock.rate == 0
    scene.rule(f"op=READ,hang{and_errno}")
    found: list[object] = []

    async def read() -> None:
        found.append(await met(scene.stack.read(0, 1)))

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            assert (found, scene.hits) == ([], [2])
            execute(scene.injector, removal)
    assert found == [blamed, blamed]


async def test_an_operation_that_hung_and_was_given_up_leaves_its_file_unsettled(
    scene: Scene, autojump_clock: MockClock
) -> None:
    assert autojump_clock.rate == 0
    scene.rule("op=WRITE,hang")
    with trio.move_on_after(1):
        await scene.stack.write(2 * CLUSTER, b"x")
    execute(scene.injector, "removeall")
    assert scene.stack.top.file.abandoned
    with pytest.raises(StorageTimeout):
        await scene.stack.aclose(clean=True)


async def test_a_lost_reply_is_an_error_of_what_was_done(scene: Scene) -> None:
    scene.rule("op=WRITE,errno=EIO,after")
    assert await met(scene.stack.write(2 * CLUSTER, b"x")) == ("EIO", "write", TOP, CLUSTER, 1)
    assert await scene.stack.read(2 * CLUSTER, 2) == b"xt"


# --- no rule, no cost ---------------------------------------------------------------------------------------------


async def test_without_a_live_rule_the_methods_of_an_open_file_are_those_of_the_file_below(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4096)
    injector = Injector()
    files = injector.around(OsFiles())
    early = await files.open(os.fspath(path), writable=True)

    def is_direct(file: object) -> bool:
        method = file.read_nowait  # type: ignore[attr-defined]
        return isinstance(method.__self__, OsFile)

    assert is_direct(early)
    assert bytes(early.read_nowait(0, 16) or b"") == b"x" * 16
    execute(injector, "add,op=READ,errno=EIO,count=1")
    late = await files.open(os.fspath(path), writable=True)
    assert (is_direct(early), is_direct(late)) == (False, False)
    assert early.read_nowait(0, 16) is None
    with pytest.raises(PloopError):
        await late.read(0, 16)
    assert (is_direct(early), is_direct(late)) == (True, True), "the only rule is spent"
    execute(injector, "add,op=FLUSH,errno=EIO")
    assert (is_direct(early), is_direct(late)) == (True, True), "the only rule takes no reads"
    execute(injector, "add,hang")
    assert (is_direct(early), is_direct(late)) == (False, False)
    execute(injector, "removeall")
    assert (is_direct(early), is_direct(late)) == (True, True)
    await early.aclose()
    await late.aclose()
    assert injector._files == set(), "a closed file is not kept"
