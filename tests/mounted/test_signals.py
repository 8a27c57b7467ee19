"""Signals at bad moments: while the daemon starts, replaces, holds requests or waits for a store that hangs."""

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ploopfs.cli.exits import Exit
from tests.mounted.daemon import (
    HANG_S,
    PLOOPFS,
    ROOT,
    Lines,
    device,
    errno_of,
    is_mounted,
    opened,
    serving,
    unmount,
    until,
    write_config,
)
from tests.mounted.disks import assert_closed, is_marked, make_disk
from tests.mounted.storage import Bindfs

pytestmark = pytest.mark.real

ENDING = (signal.SIGTERM, signal.SIGINT)


MOMENTS = {
    "libc.so": False,
    "_yaml": False,
    "_multiarray_umath": False,
    "scst is loaded": True,
    "ploop0: ": True,
    "is ready": True,
}
"""What is loaded or said while a daemon starts, in that order, and whether a signal then ends it in order."""


@contextmanager
def starting(place: Path, *devices: dict[str, object]) -> Iterator[tuple["subprocess.Popen[str]", Lines]]:
    """A daemon that nobody waits for; its signals are those of a shell in the foreground."""
    mountpoint = place / "mnt"
    mountpoint.mkdir()
    command = ["env", "--default-signal=INT", *PLOOPFS, "mount", str(write_config(place, *devices)), str(mountpoint)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = Lines(process.stderr)
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait(HANG_S)
        unmount(mountpoint)
        lines.wait_end()


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_while_an_image_is_being_opened_ends_the_daemon_and_what_is_open_is_closed(
    tmp_path: Path, bindfs: Bindfs, number: signal.Signals
) -> None:
    """The second image lies on a store that does not answer; the first one is open for writing by then."""
    first, hanging = make_disk(tmp_path / "disk"), make_disk(bindfs.bricks / "disk")
    path = bindfs.path / "disk" / hanging.top.name
    with starting(tmp_path, device(first.directory), device([path], "ploop1")) as (process, lines):
        with bindfs.stopped():
            lines.wait_for(f"ploop0: {first.size_bytes} bytes")
            process.send_signal(number)
            assert process.wait(HANG_S) == Exit.OK
        assert "Traceback" not in lines.text
        assert not is_mounted(tmp_path / "mnt")
    assert_closed(first.top)
    assert not is_marked(hanging.top)


def test_a_signal_at_any_moment_of_the_start_leaves_nothing_mounted_and_nothing_marked(tmp_path: Path) -> None:
    """Before the daemon listens it dies by the signal, and has opened nothing; after that it ends in order."""
    disk = make_disk(tmp_path / "disk")
    for number, (moment, in_order) in itertools.product(ENDING, MOMENTS.items()):
        place = tmp_path / f"{moment} {number.name}"
        place.mkdir()
        with starting(place, device(disk.directory)) as (process, lines):
            wait_for_moment(process, lines, moment)
            process.send_signal(number)
            code = process.wait(HANG_S)
        assert not is_mounted(place / "mnt")
        assert (code == Exit.OK) or (code in (-number, 128 + number, 1) and not in_order), (moment, code, lines.text)
        assert code != Exit.OK or "Traceback" not in lines.text
        assert_closed(disk.top)


def wait_for_moment(process: "subprocess.Popen[str]", lines: Lines, moment: str) -> None:
    """A library that is loaded, or a line that is logged."""
    if " " in moment:
        lines.wait_for(moment)
    else:
        until(lambda: moment in Path(f"/proc/{process.pid}/maps").read_text(), f"{moment} is loaded")


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_during_a_replace_that_hangs_ends_the_daemon_and_leaves_the_old_image_as_it_must(
    tmp_path: Path, bindfs: Bindfs, number: signal.Signals
) -> None:
    """The new image is not in force: it stays unmarked. The old one, which works, is closed."""
    disk, other = make_disk(tmp_path / "disk"), make_disk(bindfs.bricks / "other")
    path = bindfs.path / "other" / other.top.name
    with (
        serving(tmp_path, device(disk.directory), shutdown_deadline_s=1) as daemon,
        opened(daemon.disk()) as fd,
        ThreadPoolExecutor(1) as thread,
    ):
        os.pwrite(fd, b"to be flushed", 0)
        with bindfs.stopped():
            replacing = thread.submit(errno_of, daemon.store, "ploopfs/replace_delta", str(path))
            daemon_events = daemon.events
            until(lambda: any(one["event"] == "replace_begin" for one in daemon_events()), "the replace has begun")
            code = daemon.end(number)
            assert replacing.result(HANG_S) in ("ECONNABORTED", "ENOTCONN", "ESHUTDOWN", "EIO")
        assert "Traceback" not in daemon.log
        assert code in (Exit.OK, Exit.NOT_CLOSED)
        assert is_marked(disk.top) == (code == Exit.NOT_CLOSED)
        assert not is_mounted(daemon.mountpoint)
    assert not is_marked(other.top)


def test_a_second_interrupt_cuts_off_a_request_that_hangs_and_the_image_stays_marked(
    tmp_path: Path, bindfs: Bindfs
) -> None:
    disk = make_disk(bindfs.bricks / "disk")
    with (
        serving(tmp_path, device(bindfs.path / "disk"), shutdown_deadline_s=2) as daemon,
        opened(daemon.disk()) as fd,
        ThreadPoolExecutor(1) as thread,
    ):
        with bindfs.stopped():
            hanging = thread.submit(errno_of, os.pwrite, fd, b"x", 1 << 20)
            until(lambda: daemon.value("pstate/active_reqs") == "1", "the request in flight")
            daemon.process.send_signal(signal.SIGINT)
            daemon.wait_for_line("SIGINT: ending")
            assert daemon.end(signal.SIGINT) == Exit.NOT_CLOSED
            assert hanging.result(HANG_S) in ("ECONNABORTED", "ENOTCONN")
        assert "was given up and may yet happen" in daemon.log
        assert "are cut off" not in daemon.log, "the second signal did it, not the deadline"
        assert not is_mounted(daemon.mountpoint)
    assert is_marked(disk.top)


def test_an_interrupt_ends_a_verb_while_the_daemon_goes_on_with_its_operation(tmp_path: Path, bindfs: Bindfs) -> None:
    """The write itself cannot be interrupted: the daemon has it."""
    disk, other = make_disk(tmp_path / "disk"), make_disk(bindfs.bricks / "other")
    path = bindfs.path / "other" / other.top.name
    with serving(tmp_path, device(disk.directory)) as daemon:
        with bindfs.stopped():
            command = ["env", "--default-signal=INT", *PLOOPFS, "replace", "ploop0", str(path)]
            verb = subprocess.Popen(
                [*command, "-m", str(daemon.mountpoint)], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            until(lambda: any(one["event"] == "replace_begin" for one in daemon.events()), "the replace has begun")
            verb.send_signal(signal.SIGINT)
            _, said = verb.communicate(timeout=HANG_S)
            assert verb.returncode == 128 + signal.SIGINT
            assert b"ploop0: the daemon goes on with it" in said
            assert daemon.value("ploopfs/generation") == "1"
        until(lambda: daemon.value("ploopfs/generation") == "2", "the replacement")
        assert daemon.value("pdelta/0/image") == str(path)
        assert daemon.end() == Exit.OK
