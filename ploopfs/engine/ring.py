"""Writes that the kernel makes by itself and tells of afterwards: io_uring(7).

One ring serves an event loop. Each file has a worker of the kernel's, so one whose storage hangs holds up no other, and
nobody waits for this process's interpreter. Knows nothing of images and requests. Invariant: the bytes of a write stay
where they are until the kernel is done with them, also if it is given up, or the event loop ends before.
"""

import ctypes
import logging
import mmap
import os
import struct
from collections.abc import Callable
from contextlib import suppress

import trio
from trio.lowlevel import Abort, RaiseCancelT, RunVar, Task

from ploopfs.bounds import MAX_DEVICES, RING_WRITES

log = logging.getLogger(__name__)

# linux/io_uring.h, Linux 5.15: the calls, and what they and the memory that is shared with the kernel look like.
_SETUP, _ENTER, _REGISTER = 425, 426, 427
_REGISTER_EVENTFD, _REGISTER_IOWQ_MAX_WORKERS = 4, 19
_PARAMETERS = struct.Struct("=6I16x7I12x7I12x")
_SUBMISSION = struct.Struct("=BBHiQQIIQ24x")
_COMPLETION = struct.Struct("=QiI")
_SUBMISSIONS_AT = 0x1000_0000
_OP_WRITE = 23
_BY_A_WORKER = 1 << 4
_AGAIN_S = 0.01
_LOW_32 = (1 << 32) - 1

_call = ctypes.CDLL(None, use_errno=True).syscall
_call.restype = ctypes.c_long

_address_of_bytes = ctypes.pythonapi.PyBytes_AsString
_address_of_bytes.argtypes, _address_of_bytes.restype = (ctypes.py_object,), ctypes.c_void_p


def _over(_result: int) -> None:
    """Told already."""


class Write:
    """One that has begun. It may be given up by whoever waits for it, and goes on."""

    __slots__ = ("_ended", "_hold", "_result", "_task")

    def __init__(self, hold: object, ended: Callable[[int], None]) -> None:
        self._hold, self._ended = hold, ended
        self._task: Task | None = None
        self._result: int | None = None

    def is_under_way(self) -> bool:
        return self._result is None

    async def wait(self) -> int:
        """For its result."""
        if self._result is None:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._give_up)
        assert self._result is not None
        return self._result

    def _give_up(self, _raise_cancel: RaiseCancelT) -> Abort:
        self._task = None
        return Abort.SUCCEEDED

    def end(self, result: int) -> None:
        self._result = result
        self._hold, ended, self._ended = None, self._ended, _over  # who is told may know this
        ended(result)
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)


class Ring:
    """Raises OSError where the kernel has none, or lets us have none."""

    def __init__(self) -> None:
        self._writes: dict[int, Write] = {}
        self._number = 0
        self._gathered = 0
        self.is_gathering = self._is_submitting = False
        parameters = bytearray(_PARAMETERS.size)
        self._fd = _checked(_call(_SETUP, int(RING_WRITES), ctypes.byref(ctypes.c_char.from_buffer(parameters))))
        self._event = -1
        try:
            self._map(parameters)
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            _checked(_call(_REGISTER, self._fd, _REGISTER_EVENTFD, ctypes.byref(ctypes.c_int(self._event)), 1))
            # One works for a file at a time; with fewer than files, those that hang would hold up the others.
            workers = (ctypes.c_uint * 2)(MAX_DEVICES, 0)
            _checked(_call(_REGISTER, self._fd, _REGISTER_IOWQ_MAX_WORKERS, workers, 2))
        except BaseException:
            self.close()
            raise

    def _map(self, parameters: bytearray) -> None:
        """Both queues are in one piece since Linux 5.4; of the places of the parts the kernel tells."""
        submissions, completions, _flags, _cpu, _idle, _features, *places = _PARAMETERS.unpack(parameters)
        _, sq_tail, _, _, _, _, sq_array, cq_head, cq_tail, _, _, _, cq_entries, _ = places
        size = max(sq_array + 4 * submissions, cq_entries + _COMPLETION.size * completions)
        self._shared = mmap.mmap(self._fd, size + -size % 4, mmap.MAP_SHARED)
        self._submissions = mmap.mmap(self._fd, 64 * submissions, mmap.MAP_SHARED, offset=_SUBMISSIONS_AT)
        self._words = memoryview(self._shared).cast("I")
        for index in range(submissions):
            self._words[sq_array // 4 + index] = index
        self._sq_tail, self._cq_head, self._cq_tail = sq_tail // 4, cq_head // 4, cq_tail // 4
        self._sq_mask, self._cq_mask, self._cq_entries = submissions - 1, completions - 1, cq_entries
        self._submitted, self._delivered = self._words[self._sq_tail], self._words[self._cq_head]

    def begin(
        self, fd: int, offset: int, data: bytes | bytearray | memoryview, ended: Callable[[int], None]
    ) -> Write:
        """`ended` is called with the result as of pwrite(2), how many bytes or an errno as a negative number, when the
        kernel is done with it; until then `fd` stays open. Raises BlockingIOError, with nothing begun and nothing
        called, while there is no room for another write."""
        if len(self._writes) >= RING_WRITES:
            raise BlockingIOError
        address, hold = _pinned(data)
        number = self._number = self._number + 1
        at = (self._submitted & self._sq_mask) * _SUBMISSION.size
        what = (_OP_WRITE, _BY_A_WORKER, 0, fd, offset, address, len(data), 0, number)
        _SUBMISSION.pack_into(self._submissions, at, *what)
        self._submitted = self._words[self._sq_tail] = (self._submitted + 1) & _LOW_32
        write = self._writes[number] = Write(hold, ended)
        self._gathered += 1
        if not self.is_gathering:
            self._submit()
        return write

    def gather(self) -> None:
        """What begins from now on is handed to the kernel by `submit`, in one call."""
        self.is_gathering = True

    def submit(self) -> None:
        self.is_gathering = False
        if self._gathered:
            self._submit()

    def _submit(self) -> None:
        taken = _call(_ENTER, self._fd, self._gathered, 0, 0, None, 0)
        self._gathered -= max(0, taken)
        if self._gathered and not self._is_submitting:
            self._is_submitting = True
            trio.lowlevel.spawn_system_task(self._submit_rest)

    async def _submit_rest(self) -> None:
        """The kernel had no memory for it."""
        while self._gathered:
            await trio.sleep(_AGAIN_S)
            self._submit()
        self._is_submitting = False

    def deliver(self) -> bool:
        """To everybody whose write has ended; whether there was anybody."""
        tail = self._words[self._cq_tail]
        if self._delivered == tail:
            return False
        while True:
            # After the tail: as a barrier between it and what lies before it. And before the next look at it: whatever
            # this takes notice of is seen then.
            self._clear_event()
            while self._delivered != tail:
                at = self._cq_entries + (self._delivered & self._cq_mask) * _COMPLETION.size
                number, result, _flags = _COMPLETION.unpack_from(self._shared, at)
                self._delivered = self._words[self._cq_head] = (self._delivered + 1) & _LOW_32
                try:
                    self._writes.pop(number).end(result)
                except Exception:
                    log.exception("who was told of a write's end met a bug")
            tail = self._words[self._cq_tail]
            if self._delivered == tail:
                return True

    def _clear_event(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)

    async def serve(self) -> None:
        """Deliver until cancelled. If the kernel is not done with some by then, it keeps what it has for ever."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._event)
                if not self.deliver():
                    self._clear_event()  # of what was delivered before
                    self.deliver()
        finally:
            if self._writes:
                # For ever: the end of the interpreter frees whatever somebody refers to, and what hangs in a storage
                # would go on with the bytes of something else.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
            else:
                self.close()

    def close(self) -> None:
        for fd in (self._fd, self._event):
            if fd >= 0:
                os.close(fd)
        self._fd = self._event = -1


_RING: RunVar["Ring | None"] = RunVar("ring")


def ring_of_loop() -> Ring | None:
    """None where there is none: then threads write."""
    try:
        return _RING.get()
    except LookupError:
        pass
    ring = None
    try:
        ring = Ring()
    except OSError as error:
        log.info("no io_uring, threads write instead: %s", error)
    else:
        trio.lowlevel.spawn_system_task(ring.serve)
    _RING.set(ring)
    return ring


def _pinned(data: bytes | bytearray | memoryview) -> tuple[int, object]:
    """Where the bytes are, and what to keep as long as they are to be there."""
    if isinstance(data, memoryview) and data.readonly:
        data = bytes(data)
    if isinstance(data, bytes):
        return _address_of_bytes(data), data
    start = ctypes.c_char.from_buffer(data)
    return ctypes.addressof(start), start


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
