"""Who is told to end: what the kernel shows of a thread's signals."""

import signal
import threading
from pathlib import Path

import pytest

from ploopfs.blockfuse.ending import ends, is_told_to_end


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
