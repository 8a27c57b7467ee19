"""A user's program, for real: what it gets, what it says, how it ends, and that nothing of it is left."""

import os
import select
import signal
import stat
from pathlib import Path

import pytest
import trio

from ploopfs.bounds import OUTPUT_BYTES
from ploopfs.engine import command
from ploopfs.engine.command import Ended, run_command

HANG_S = 60


async def sh(script: str, *arguments: str, timeout_s: float = HANG_S, **environment: str) -> Ended:
    with trio.fail_after(HANG_S):
        return await run_command(["/bin/sh", "-c", script, *arguments], environment, timeout_s)


def is_running(pid: int) -> bool:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([process], [], [], 0)[0]
    finally:
        os.close(process)


async def wait_for_line(path: Path) -> str:
    """What somebody writes to a FIFO."""
    with trio.fail_after(HANG_S):
        return await trio.to_thread.run_sync(path.read_text, abandon_on_cancel=True)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


async def test_a_program_s_exit_code_and_both_of_its_outputs_are_told() -> None:
    assert await sh("echo out; echo err >&2; exit 3") == Ended(3, "out\nerr\n")
    assert str(Ended(3, "")) == "exited with 3"


async def test_it_gets_its_arguments_as_they_are_and_what_is_added_to_our_environment() -> None:
    ended = await sh('echo "$0|$1|$FACT|$HOME"; pwd; cat', "a b", "$(c)", FACT="x y")
    assert ended == Ended(0, f"a b|$(c)|x y|{os.environ.get('HOME', '')}\n/\n")


async def test_a_program_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    absent = await run_command(["/no/such/program"], {}, HANG_S)
    assert absent.code == 127
    assert "/no/such/program" in absent.output
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(stat.S_IRUSR)
    assert (await run_command([str(tmp_path / "text")], {}, HANG_S)).code == 126


async def test_a_program_without_a_slash_is_looked_for() -> None:
    assert await run_command(["printf", "%s", "found"], {}, HANG_S) == Ended(0, "found")


async def test_of_much_output_the_end_is_kept() -> None:
    ended = await sh("yes first | head -c 300000; printf last")
    assert ended.code == 0
    assert len(ended.output) == OUTPUT_BYTES
    assert ended.output.endswith("first\nlast")


async def test_what_is_no_text_is_shown_as_far_as_it_can_be() -> None:
    assert (await sh(r"printf 'a\377b'")).output == "a\ufffdb"


async def test_a_program_that_a_signal_ended_is_told_by_its_number() -> None:
    ended = await sh("kill -KILL $$")
    assert (ended.code, str(ended)) == (-9, "was ended by signal 9")


async def test_at_its_time_limit_it_and_what_it_started_are_ended(tmp_path: Path) -> None:
    child = f"(trap '' TERM; while :; do sleep 1000; done) & echo $! > {tmp_path}/child"
    ended = await sh(f"{child}; echo $$ > {tmp_path}/own; echo begun; wait", timeout_s=0.5)
    assert (ended.code, ended.output, str(ended)) == (None, "begun\n", "was ended at its time limit")
    assert not is_running(int((tmp_path / "own").read_text()))
    with trio.fail_after(HANG_S):
        while is_running(int((tmp_path / "child").read_text())):
            await trio.lowlevel.checkpoint()


async def test_a_program_that_does_not_end_when_asked_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "GRACE_S", 0.2)
    ended = await sh("trap '' TERM; echo deaf; while :; do sleep 1000; done", timeout_s=0.5)
    assert (ended.code, ended.output) == (None, "deaf\n")


async def test_a_program_may_clean_up_at_its_time_limit() -> None:
    ended = await sh("trap 'echo cleaned; exit 0' TERM; while :; do sleep 0.01; done", timeout_s=0.5)
    assert ended.code is None
    assert ended.output.endswith("cleaned\n")


async def test_a_cancelled_run_ends_the_program_before_it_returns(tmp_path: Path, fifo: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sh, f"echo $$ > {tmp_path}/own; echo begun > {fifo}; sleep 1000")
        assert await wait_for_line(fifo) == "begun\n"
        nursery.cancel_scope.cancel()
    assert not is_running(int((tmp_path / "own").read_text()))


async def test_a_server_that_it_leaves_behind_neither_delays_the_result_nor_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "OUTPUT_GRACE_S", 0.1)
    ended = await sh(f"setsid sleep 1000 & echo $! > {tmp_path}/server; echo done")
    server = int((tmp_path / "server").read_text())
    try:
        assert ended == Ended(0, "done\n")
        assert is_running(server)
    finally:
        os.kill(server, signal.SIGKILL)


async def test_it_is_no_child_of_our_terminal_and_leads_its_own_group() -> None:
    ended = await sh("ps -o pid=,pgid=,sid= -p $$")
    pid, group, session = ended.output.split()
    assert pid == group == session
    assert int(session) != os.getsid(0)
