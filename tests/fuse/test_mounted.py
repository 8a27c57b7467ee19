"""kernel-ploop.md 5 on a real mount: what system calls see of a toy tree that another process serves."""

import mmap
import os
import select
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuse.mounting import HANG_S, Mounted, errno_of, mounted, until
from tests.fuse.toy import ALLOCATED_BYTES, DISK_BYTES, MANY, MAX_TASKS
from tests.realparts import need

pytestmark = pytest.mark.real

READY = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
CHANGED = select.POLLPRI | select.POLLERR


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    need(fuse=True)
    with mounted(tmp_path_factory.mktemp("toy")) as running:
        yield running


@pytest.fixture
def tree(toy: Mounted) -> Path:
    return toy.path


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def counts(tree: Path) -> list[int]:
    """Writes, writes with FUA and flushes of dev/disk."""
    return [int(word) for word in (tree / "counts").read_text().split()]


# Reading an attribute


def test_the_value_is_generated_at_offset_0_and_small_reads_continue_in_it(tree: Path) -> None:
    with opened(tree / "counter") as fd:
        whole = os.pread(fd, 100, 0)
        assert b"".join(iter(lambda: os.read(fd, 1), b"")) == b"%d\n" % (int(whole) + 1)
        assert os.read(fd, 1) == b""
        assert os.pread(fd, 100, 1) == (b"%d\n" % (int(whole) + 1))[1:]
        assert os.pread(fd, 100, 4000) == b""
        os.lseek(fd, 0, os.SEEK_SET)
        assert os.read(fd, 100) == b"%d\n" % (int(whole) + 2)


def test_a_long_value_is_capped_and_read_whole_by_any_reader(tree: Path) -> None:
    assert (tree / "long").read_bytes() == b"x" * 4095


def test_the_error_of_show_is_the_errno_of_read_and_not_of_open(tree: Path) -> None:
    with opened(tree / "einval") as fd:
        assert errno_of(os.read, fd, 10) == "EINVAL"


def test_the_end_of_an_attribute_is_at_4096(tree: Path) -> None:
    with opened(tree / "counter") as fd:
        assert os.lseek(fd, 0, os.SEEK_END) == 4096


# Writing an attribute


def test_one_write_is_one_store_whatever_the_offset(tree: Path) -> None:
    with opened(tree / "text", os.O_RDWR | os.O_APPEND) as fd:
        assert os.write(fd, b"one\n") == 4
        assert os.pread(fd, 100, 0) == b"4:one\n"
        assert os.pwrite(fd, b"second\n", 1) == 7
        assert os.pread(fd, 100, 0) == b"7:second\n"


def test_5000_bytes_are_taken_as_4096(tree: Path) -> None:
    with opened(tree / "text", os.O_WRONLY) as fd:
        assert os.write(fd, b"0" * 5000) == 4096
        assert (tree / "text").read_text().startswith("4096:000")
        assert os.write(fd, b"0" * 3_000_000) == 4096


def test_the_error_of_store_is_the_errno_of_write(tree: Path) -> None:
    with opened(tree / "text", os.O_WRONLY) as fd:
        assert errno_of(os.write, fd, b"bad") == "EINVAL"
        assert os.write(fd, b"good") == 4


def test_a_write_of_nothing_stores_nothing(tree: Path) -> None:
    with opened(tree / "text", os.O_WRONLY) as fd:
        os.write(fd, b"kept")
        assert os.write(fd, b"") == 0
    assert (tree / "text").read_text() == "4:kept\n"


def test_the_shell_writes_with_truncation(tree: Path) -> None:
    subprocess.run(["sh", "-c", f"echo word > '{tree}/text'"], check=True)
    assert subprocess.run(["cat", tree / "text"], capture_output=True, check=True).stdout == b"5:word\n"


def test_truncating_an_attribute_succeeds_and_does_nothing(tree: Path) -> None:
    (tree / "text").write_text("kept")
    for size_bytes in (0, 10, 100_000):
        os.truncate(tree / "text", size_bytes)
    with opened(tree / "text", os.O_WRONLY | os.O_TRUNC) as fd:
        os.ftruncate(fd, 0)
        os.fsync(fd)
    assert (tree / "text").read_text() == "4:kept\n"
    assert (tree / "text").stat().st_size == 4096


# Opening and changing the namespace


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("counter", os.O_WRONLY),
        ("counter", os.O_RDWR),
        ("write_only", os.O_RDONLY),
        ("write_only", os.O_RDWR),
        ("dev/read_only", os.O_WRONLY),
        ("dev/read_only", os.O_RDWR),
        ("new", os.O_WRONLY | os.O_CREAT),
        ("dev/new", os.O_RDWR | os.O_CREAT | os.O_EXCL),
    ],
)
def test_what_cannot_be_done_is_refused_at_open_even_to_root(tree: Path, name: str, flags: int) -> None:
    assert errno_of(os.open, tree / name, flags) == "EACCES"


def test_creation_of_what_exists_opens_it(tree: Path) -> None:
    with opened(tree / "counter", os.O_RDONLY | os.O_CREAT) as fd:
        assert os.read(fd, 10)


def test_the_namespace_does_not_change_on_request(tree: Path) -> None:
    assert errno_of(os.mkdir, tree / "new") == "EPERM"
    assert errno_of(os.mknod, tree / "new", stat.S_IFREG | 0o600) == "EPERM"
    assert errno_of(os.symlink, "counter", tree / "new") == "EPERM"
    assert errno_of(os.link, tree / "counter", tree / "new") == "EPERM"
    assert errno_of(os.unlink, tree / "counter") == "EPERM"
    assert errno_of(os.rename, tree / "counter", tree / "new") == "EPERM"
    assert errno_of(os.rename, tree / "counter", tree / "text") == "EPERM"
    assert errno_of(os.rmdir, tree / "dev") == "EPERM"


def test_extended_attributes_are_not_supported(tree: Path) -> None:
    assert errno_of(os.getxattr, tree / "counter", "user.a") == "ENOTSUP"
    assert errno_of(os.setxattr, tree / "counter", "user.a", b"1", os.XATTR_CREATE) == "ENOTSUP"


# What stat(2) says


def test_stat_of_every_kind_of_node(tree: Path) -> None:
    def said(name: str) -> tuple[int, int, int, int]:
        found = os.lstat(tree / name)
        assert (found.st_uid, found.st_gid, found.st_blksize) == (os.geteuid(), os.getegid(), 4096)
        return found.st_mode, found.st_size, found.st_nlink, found.st_blocks

    assert said("counter") == (stat.S_IFREG | 0o444, 4096, 1, 0)
    assert said("text") == (stat.S_IFREG | 0o644, 4096, 1, 0)
    assert said("write_only") == (stat.S_IFREG | 0o200, 4096, 1, 0)
    assert said("link") == (stat.S_IFLNK | 0o777, 0, 1, 0)
    assert said("dev") == (stat.S_IFDIR | 0o755, 0, 2, 0)
    assert said("") == (stat.S_IFDIR | 0o755, 0, 6, 0)
    assert said("dev/disk") == (stat.S_IFREG | 0o660, DISK_BYTES, 1, ALLOCATED_BYTES // 512)
    assert said("dev/read_only")[0] == stat.S_IFREG | 0o440


def test_a_link_leads_where_it_says(tree: Path) -> None:
    assert os.readlink(tree / "link") == "dev/disk"
    assert os.path.samefile(tree / "link", tree / "dev/disk")


def test_a_file_keeps_its_number_and_what_was_changed_on_it(tree: Path) -> None:
    path = tree / "many/entry0007"
    number = path.stat().st_ino
    os.chmod(path, 0o400)
    os.chown(path, 12, 34)
    os.utime(path, (1, 2))
    os.listdir(tree / "many")
    found = path.stat()
    assert (found.st_ino, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (number, 0o400, 12, 34)
    assert (found.st_atime, found.st_mtime) == (1, 2)


def test_statfs_counts_nothing(tree: Path) -> None:
    found = os.statvfs(tree)
    assert (found.f_bsize, found.f_frsize, found.f_namemax) == (4096, 4096, 255)
    assert (found.f_blocks, found.f_bfree, found.f_files) == (0, 0, 0)


# Directories


def test_a_large_directory_is_listed_whole_and_in_order(tree: Path) -> None:
    with os.scandir(tree / "many") as entries:
        assert [entry.name for entry in entries] == [f"entry{number:04}" for number in range(MANY)]


def test_a_directory_changes_between_two_looks(tree: Path) -> None:
    (tree / "names").write_text("a b")
    assert os.listdir(tree / "changing") == ["a", "b"]
    (tree / "names").write_text("b c")
    assert os.listdir(tree / "changing") == ["b", "c"]
    assert errno_of(os.stat, tree / "changing/a") == "ENOENT"


def test_a_file_removed_and_added_again_is_another_file(tree: Path) -> None:
    (tree / "names").write_text("a kept")
    old, kept = (tree / "changing/a").stat().st_ino, (tree / "changing/kept").stat().st_ino
    (tree / "names").write_text("kept")
    (tree / "names").write_text("a kept")
    assert (tree / "changing/a").stat().st_ino != old
    assert (tree / "changing/kept").stat().st_ino == kept


def test_what_the_kernel_keeps_of_a_fixed_directory_hides_no_change(tree: Path) -> None:
    fixed, changing = tree / "fixed", tree / "fixed" / "changing"
    (tree / "names").write_text("a")
    before = (changing / "a").stat().st_ino
    (tree / "names").write_text("b")
    assert (errno_of(os.stat, changing / "a"), os.listdir(changing)) == ("ENOENT", ["b"])
    (tree / "names").write_text("a b")
    assert (changing / "a").stat().st_ino != before
    for _ in range(2):  # the second time the kernel knows
        assert errno_of(os.stat, fixed / "none") == errno_of(os.stat, changing / "none") == "ENOENT"
        assert errno_of(os.open, fixed / "none", os.O_WRONLY | os.O_CREAT) == "EACCES"
        assert (errno_of(os.mkdir, fixed / "none"), errno_of(os.unlink, fixed / "none")) == ("EPERM", "ENOENT")
    for text in ("once", "and again"):
        (fixed / "value").write_text(text)
        assert (fixed / "value").read_text() == (tree / "text").read_text() == f"{len(text)}:{text}\n"
    for mode in (0o600, 0o644):
        os.chmod(fixed / "value", mode)
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (fixed / "value", tree / "text")]
        assert modes == [mode, mode]


def test_an_open_file_outlives_its_name(tree: Path) -> None:
    (tree / "names").write_text("a")
    with opened(tree / "changing/a") as fd:
        (tree / "names").write_text("b")
        assert os.read(fd, 10) == b"\n"
        assert os.fstat(fd).st_size == 4096


# poll


def events_of(fd: int) -> int:
    waiter = select.poll()
    waiter.register(fd, READY | CHANGED)
    return dict(waiter.poll(0))[fd]


def test_a_change_is_reported_until_this_descriptor_reads_it(tree: Path) -> None:
    with opened(tree / "level") as fd, opened(tree / "level") as other:
        assert events_of(fd) == READY | CHANGED
        os.read(fd, 10)
        assert events_of(fd) == READY
        (tree / "toggle").write_text("on")
        assert events_of(fd) == READY | CHANGED
        assert os.pread(fd, 10, 0) == b"on\n"
        assert events_of(fd) == READY
        assert events_of(other) == READY | CHANGED


def test_waiters_are_woken_by_each_change(tree: Path) -> None:
    with opened(tree / "level") as fd, opened(tree / "level") as other, select.epoll() as waiter:
        for each in (fd, other):
            os.read(each, 10)
            waiter.register(each, select.EPOLLPRI)
        for value in (b"on\n", b"off\n", b"on\n"):
            assert waiter.poll(0) == []
            (tree / "toggle").write_bytes(value)
            for _ in (fd, other):
                # One at a time: both have changed, but the wake-ups arrive one after the other.
                [(woken, events)] = waiter.poll(HANG_S, 1)
                assert events & select.EPOLLPRI
                assert os.pread(woken, 10, 0) == value


def test_a_blocked_select_returns_on_a_change(tree: Path) -> None:
    with opened(tree / "level") as fd:
        os.read(fd, 10)
        changing = threading.Thread(target=(tree / "toggle").write_text, args=("again",))
        changing.start()
        assert select.select([], [], [fd], HANG_S) == ([], [], [fd])
        changing.join()


def test_a_disk_is_always_ready(tree: Path) -> None:
    with opened(tree / "dev/disk") as fd:
        assert events_of(fd) == READY


# Bugs


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY], ids=["read", "write of an exception group"])
def test_an_exception_costs_one_request_and_not_the_mount(toy: Mounted, flags: int) -> None:
    with opened(toy.path / "bug", flags) as fd:
        assert errno_of(*((os.read, fd, 10) if flags == os.O_RDONLY else (os.write, fd, b"x"))) == "EIO"
    assert "ERROR:ploopfs.fuse.operations:Operations." in toy.log
    assert ("RuntimeError: a bug in show" if flags == os.O_RDONLY else "ValueError: a bug in store") in toy.log
    assert (toy.path / "counter").read_text()


# The disk


def test_the_disk_holds_what_was_written_at_any_alignment(tree: Path) -> None:
    with opened(tree / "dev/disk", os.O_RDWR) as fd:
        for offset in (0, DISK_BYTES - 1024):
            os.pwrite(fd, bytes(1024), offset)
        assert os.pwrite(fd, b"word", 511) == 4
        assert os.pread(fd, 6, 510) == b"\0word\0"
        assert os.pread(fd, 100, DISK_BYTES - 3) == b"\0\0\0"
        assert os.pread(fd, 100, DISK_BYTES) == b""


def test_a_write_at_the_end_of_the_disk_is_short_and_past_it_enospc(tree: Path) -> None:
    with opened(tree / "dev/disk", os.O_RDWR) as fd:
        assert os.pwrite(fd, b"12345", DISK_BYTES - 2) == 2
        assert errno_of(os.pwrite, fd, b"x", DISK_BYTES) == "ENOSPC"
        assert errno_of(os.pwrite, fd, b"x", DISK_BYTES + 4096) == "ENOSPC"
    assert (tree / "dev/disk").stat().st_size == DISK_BYTES


def test_fsync_flushes_and_close_does_not(tree: Path) -> None:
    before = counts(tree)[2]
    with opened(tree / "dev/disk", os.O_RDWR) as fd:
        os.write(fd, b"x")
        os.close(os.dup(fd))
        assert counts(tree)[2] == before
        os.fsync(fd)
        os.fdatasync(fd)
        assert counts(tree)[2] == before + 2
    assert counts(tree)[2] == before + 2


@pytest.mark.parametrize(("flag", "fua"), [(0, 0), (os.O_DSYNC, 1), (os.O_SYNC, 1)])
def test_synchronous_descriptors_write_with_fua(tree: Path, flag: int, fua: int) -> None:
    before = counts(tree)[1]
    with opened(tree / "dev/disk", os.O_WRONLY | flag) as fd:
        os.write(fd, b"x")
    assert counts(tree)[1] == before + fua


def test_open_files_are_counted(tree: Path) -> None:
    # The kernel releases a file some time after close(2).
    until(tree / "opened", "0\n")
    with opened(tree / "dev/disk"), opened(tree / "dev/disk", os.O_RDWR):
        assert (tree / "opened").read_text() == "2\n"
    until(tree / "opened", "0\n")


def test_o_direct_works_with_aligned_memory(tree: Path) -> None:
    with opened(tree / "dev/disk", os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(-1, 8192) as page:
        page[:] = b"d" * 8192
        assert os.pwritev(fd, [page], 65536) == 8192
        assert os.pread(fd, 8192, 65536) == b"d" * 8192


def test_truncating_the_disk_is_accepted_only_where_it_means_nothing(tree: Path) -> None:
    with opened(tree / "dev/disk", os.O_RDWR) as fd:
        os.pwrite(fd, b"kept", 0)
        os.ftruncate(fd, 0)
        os.ftruncate(fd, DISK_BYTES)
        assert errno_of(os.ftruncate, fd, 4096) == "EINVAL"
        assert os.pread(fd, 4, 0) == b"kept"
        assert os.fstat(fd).st_size == DISK_BYTES


def test_dd_writes_the_disk_without_being_told_not_to_truncate(tree: Path, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "source").write_bytes(content)
    # Without bs, as most people call it, dd opens its output with O_TRUNC.
    subprocess.run(["dd", f"if={tmp_path}/source", f"of={tree}/dev/disk", "bs=64k"], capture_output=True, check=True)
    assert (tree / "dev/disk").read_bytes()[: len(content)] == content
    assert (tree / "dev/disk").stat().st_size == DISK_BYTES


def test_a_loop_device_works_on_the_disk(tree: Path) -> None:
    need(commands=("losetup",), loop=True)
    losetup = ["losetup", "--direct-io=on", "--find", "--show", os.fspath(tree / "dev/disk")]
    loop = subprocess.run(losetup, capture_output=True, text=True, check=True).stdout.strip()
    try:
        flushes = counts(tree)[2]
        with opened(Path(loop), os.O_RDWR) as fd:
            assert os.pwrite(fd, b"loop" * 1024, 8192) == 4096
            os.fsync(fd)
        assert counts(tree)[2] > flushes
        with opened(tree / "dev/disk") as fd:
            assert os.pread(fd, 4096, 8192) == b"loop" * 1024
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


# Requests that wait


def test_200_waiting_requests_leave_the_tree_alive(tree: Path) -> None:
    assert MAX_TASKS > 200

    def read() -> None:
        with opened(tree / "dev/stuck") as fd:
            answers.append(os.read(fd, 512))

    answers: list[bytes] = []
    readers = [threading.Thread(target=read) for _ in range(200)]
    for reader in readers:
        reader.start()
    try:
        until(tree / "waiting", "200\n")
        assert len(os.listdir(tree / "many")) == MANY
        assert answers == []
    finally:
        (tree / "unstick").write_text("1")
        for reader in readers:
            reader.join()
    assert answers == [bytes(512)] * 200


def test_the_kernel_lets_as_many_asynchronous_requests_wait_as_we_do(tree: Path) -> None:
    need(commands=("unshare",), root=True)
    number = os.minor(tree.stat().st_dev)
    place = "/sys/fs/fuse/connections"
    script = f"test -e {place}/{number} || mount -t fusectl fusectl {place}; cat {place}/{number}/max_background"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == MAX_TASKS
