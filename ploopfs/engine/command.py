"""A user's program, run to its end: bounded in time, with its output kept in bounds.

It starts in a session and a process group of its own, in the root directory, with nothing on its standard input. Knows
nothing of what it is for. Invariants: who runs it goes on meanwhile, whatever the program lies on; a storage that hangs
under another image does not keep it from being started; at its time limit, or when its run is cancelled, its whole
process group is ended; who left that group (a mount helper, a server it started) is not ours to end, and does not delay
the result.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from ploopfs.bounds import GRACE_S, OUTPUT_BYTES, OUTPUT_GRACE_S
from ploopfs.engine.apart import APART, path_of
from ploopfs.errors import CommandFailed

_LAUNCH = ("/bin/sh", "-c", 'exec "$0" "$@"')
"""Whoever starts a process stands still until the program is loaded. One that lies on a storage that hangs, or on one
of our own disks, would take us along for ever; this shell stands still in our place."""


@dataclass(frozen=True, slots=True)
class Ended:
    """`code` is negative for the signal that ended it, None at the time limit. 126 and 127: it could not be started."""

    code: int | None
    output: str

    def __str__(self) -> str:
        if self.code is None:
            return "was ended at its time limit"
        return f"was ended by signal {-self.code}" if self.code < 0 else f"exited with {self.code}"


async def run_command(arguments: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Ended:
    """`environment` is added to our own. Raises CommandFailed if no process can be made at all."""
    try:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        async with trio.lowlevel.FdStream(reading) as output:
            try:
                start = partial(_start, arguments, {**os.environ, **environment}, path_of(writing))
                process = await APART.run(start)
            finally:
                os.close(writing)
            return await _run_to_end(process, output, timeout_s)
    except OSError as error:
        raise CommandFailed(f"{arguments[0]}: no process could be started: {error.strerror}") from error


def _start(arguments: Sequence[str], environment: Mapping[str, str], output: str) -> "subprocess.Popen[bytes]":
    pipe = os.open(output, os.O_WRONLY | os.O_CLOEXEC)
    try:
        return subprocess.Popen(
            [*_LAUNCH, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(pipe)


async def _run_to_end(
    process: "subprocess.Popen[bytes]", output: trio.abc.ReceiveStream, timeout_s: float
) -> Ended:
    kept = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_end, output, kept)
        try:
            with trio.move_on_after(timeout_s) as limit:
                await _wait_ended(process)
        finally:
            await _end(process)
        # For what is still in the pipe; a child of the program may hold it open for ever.
        nursery.cancel_scope.deadline = trio.current_time() + OUTPUT_GRACE_S
    return Ended(None if limit.cancelled_caught else process.returncode, kept.decode("utf-8", "replace"))


async def _wait_ended(process: "subprocess.Popen[bytes]") -> None:
    ended = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(ended)
    finally:
        os.close(ended)
    process.wait()


async def _keep_end(pipe: trio.abc.ReceiveStream, output: bytearray) -> None:
    async for data in pipe:
        output += data
        del output[:-OUTPUT_BYTES]


async def _end(process: "subprocess.Popen[bytes]") -> None:
    """Its number is its own, and its group's, until it has been waited for: that is done last."""
    if process.returncode is not None:
        return
    with trio.CancelScope(shield=True):
        ended = os.pidfd_open(process.pid)
        try:
            os.killpg(process.pid, signal.SIGTERM)
            with trio.move_on_after(GRACE_S):
                await trio.lowlevel.wait_readable(ended)
            # Who of the group is left has been asked, too.
            os.killpg(process.pid, signal.SIGKILL)
            with trio.move_on_after(GRACE_S):
                await _wait_ended(process)
        finally:
            os.close(ended)
