"""Who is told to end: what the kernel shows of a thread's signals."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ploopfs.blockfuse.ending import ends, is_exiting, is_leaving, is_told_to_end, process_of
from tests.mounted.daemon import until


def status(*, thread: tuple[int, ...] = (), process: tuple[int, ...] = (), blocked: tuple[int, ...] = ()) -> str:
    def mask(numbers: tuple[int, ...]) -> str:
        return f"{sum(1 << (number - 1) for number in numbers):016x}"

    facts = {"Name": "cat", "SigQ": "0/1", "SigPnd": mask(thread), "ShdPnd": mask(process), "SigBlk": mask(blocked)}
    return "".join(f"{name}:\t{value}\n" for name, value in (facts | {"SigIgn": mask(())}).items())


@pytest.mark.parametrize("number", ["SIGHUP", "SIGINT", "SIGQUIT", "SIGABRT", "SIGTERM", "SIGKILL"])
def test_these_signals_tell_a_thread_or_its_process_to_end(number: str) -> None:
    value = signal.Signals[number]
    assert ends(status(thread=(value,)))
    assert ends(status(process=(value, signal.SIGALRM)))


OTHERS = ["SIGALRM", "SIGCHLD", "SIGURG", "SIGUSR1", "SIGTSTP", "SIGSTOP", "SIGCONT", "SIGWINCH", "SIGPROF", "SIGIO"]


@pytest.mark.parametrize("number", OTHERS)
def test_others_do_not(number: str) -> None:
    assert not ends(status(thread=(signal.Signals[number],), process=(signal.Signals[number],)))


def test_a_signal_that_is_blocked_has_not_been_delivered() -> None:
    assert not ends(status(process=(signal.SIGTERM,), blocked=(signal.SIGTERM,)))
    assert ends(status(process=(signal.SIGTERM, signal.SIGINT), blocked=(signal.SIGTERM,)))


def test_of_whom_nothing_can_be_seen_it_is_believed() -> None:
    assert is_told_to_end(0)
    assert is_told_to_end((1 << 22) + 1)
    assert ends("")
    assert ends("SigPnd:\t0\nShdPnd:\t0\n")


def test_the_kernel_shows_what_is_looked_for() -> None:
    this = threading.get_native_id()
    assert not is_told_to_end(this)
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        shown = Path(f"/proc/{this}/status").read_text(encoding="utf-8")
        assert not ends(shown)
        blocked = next(line for line in shown.splitlines() if line.startswith("SigBlk"))
        assert ends(shown.replace(blocked, "SigBlk:\t0"))
    finally:
        assert signal.sigtimedwait({signal.SIGTERM}, 0) is not None
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("7 (fio) D 1 7 7 0 -1 4 0 0", True),
        ("7 (fio) Z 1 7 7 0 -1 4194564 0 0", True),
        ("7 (a) S 1 (b) D 1 7 7 0 -1 4 0 0", True),
        ("7 (a) D 1 7 7 0 -1 4 0 0) S 1 7 7 0 -1 4194560 0 0", False),
        ("7 (fio) D 1 7 7 0 -1 4194560 0 0", False),
        ("7 (fio) D 1 7", False),
        ("", False),
    ],
)
def test_a_thread_exits_whose_flags_say_so(status: str, expected: bool) -> None:
    assert is_exiting(status) == expected


def test_who_lives_or_is_gone_does_not_leave() -> None:
    assert process_of(threading.get_native_id()) == os.getpid()
    assert not is_leaving(os.getpid())
    for nobody in (0, (1 << 22) + 1):
        assert process_of(nobody) == 0
        assert not is_leaving(nobody)


def test_a_process_leaves_when_its_last_thread_does() -> None:
    """One whose first thread has ended and another has not, and one that has ended and nobody has waited for."""
    script = "import threading, ctypes; threading.Thread(target=input).start(); ctypes.CDLL(None).pthread_exit(None)"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z", "its first thread has ended")
        assert not is_leaving(process.pid)
        process.stdin.close()
        until(lambda: is_leaving(process.pid), "all of it has ended")
    finally:
        process.kill()
        process.wait()
