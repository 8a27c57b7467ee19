"""Writes that the kernel makes by itself and tells of afterwards: io_uring(7).

One ring serves an event loop. Each file has a worker of the kernel's, so one whose storage hangs holds up no other, and
nobody waits for this process's interpreter: not even who is to be answered when the bytes are written, if the answer is
left to the kernel as well. Knows nothing of images and requests. Invariants: the bytes of a write stay where they are
until the kernel is done with them, also if it is given up, or the event loop ends before; nothing of a write happens
unless all that comes before it in the write has happened in full.
"""

import ctypes
import logging
import mmap
import os
import platform
import struct
from collections.abc import Sequence
from functools import partial

import trio
from trio.lowlevel import RunVar

from ploopfs.bounds import MAX_DEVICES, RING_WRITES
from ploopfs.engine.cpus import Apart, two_cpus
from ploopfs.engine.left_to_loop import leave_to_loop
from ploopfs.engine.made_write import Made
from ploopfs.engine.ring_write import Ended, Pieces, Reply, Write

log = logging.getLogger(__name__)

# linux/io_uring.h, Linux 5.18: the calls, and what they and the memory that is shared with the kernel look like.
_SETUP, _ENTER, _REGISTER = 425, 426, 427
_REGISTER_EVENTFD, _REGISTER_IOWQ_AFF, _REGISTER_IOWQ_MAX_WORKERS = 4, 17, 19
_PARAMETERS = struct.Struct("=6I16x7I12x7I12x")
_SUBMISSION = struct.Struct("=BBHiQQIIQ24x")
_COMPLETION = struct.Struct("=QiI")
_SUBMISSION_BYTES, _COMPLETION_BYTES = _SUBMISSION.size, _COMPLETION.size
_SUBMISSIONS_AT = 0x1000_0000
_OP_WRITE = 23
_BY_A_WORKER = 1 << 4
_THEN = 1 << 2 | _BY_A_WORKER
"""What follows in the same write waits for it."""
_SUBMIT_ALL, _NO_INTERRUPT = 1 << 7, 1 << 8
_LATE_FILES = 1 << 12
_FLAGS_AT = 8
_PARTS = 4
"""Of a write: its number times this, and which of them, is what a part is known by."""
_AGAIN_S = 0.01
_LOADS_IN_ORDER = platform.machine() in {"x86_64", "i686", "i386"}
"""As this machine has them; elsewhere a system call sees to it."""
_LOW_32 = (1 << 32) - 1

_call = ctypes.CDLL(None, use_errno=True).syscall
_call.restype = ctypes.c_long

_address_of_bytes = ctypes.pythonapi.PyBytes_AsString
_address_of_bytes.argtypes, _address_of_bytes.restype = (ctypes.py_object,), ctypes.c_void_p


class Ring:
    """Raises OSError where the kernel has none, or lets us have none."""

    def __init__(self) -> None:
        self._writes: dict[int, Write] = {}
        self.left_behind: list[Made] = []
        self._number = self._in_flight = self._gathered = 0
        self.is_gathering = self._is_submitting = False
        parameters = bytearray(_PARAMETERS.size)
        # This thread is not interrupted for each that has ended: a third more writes of 4 KiB, at depth 1 and 16.
        struct.pack_into("=I", parameters, _FLAGS_AT, _SUBMIT_ALL | _NO_INTERRUPT)
        self._fd = _set_up(parameters)
        if self._fd < 0:
            parameters = bytearray(_PARAMETERS.size)
            self._fd = _checked(_set_up(parameters))
        self._event = -1
        try:
            self._map(parameters)
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            _checked(_call(_REGISTER, self._fd, _REGISTER_EVENTFD, ctypes.byref(ctypes.c_int(self._event)), 1))
            # One works for a file at a time; with fewer than files, those that hang would hold up the others.
            workers = (ctypes.c_uint * 2)(MAX_DEVICES, 0)
            _checked(_call(_REGISTER, self._fd, _REGISTER_IOWQ_MAX_WORKERS, workers, 2))
            self.apart = self._bind_workers(two_cpus())
        except BaseException:
            self.close()
            raise

    def _bind_workers(self, apart: Apart | None) -> Apart | None:
        """None where the kernel will not have it."""
        if apart is None or _call(_REGISTER, self._fd, _REGISTER_IOWQ_AFF, apart.mask, len(apart.mask)) < 0:
            return None
        return apart

    def _map(self, parameters: bytearray) -> None:
        """Both queues are in one piece since Linux 5.4; of the places of the parts the kernel tells."""
        submissions, completions, flags, _cpu, _idle, features, *places = _PARAMETERS.unpack(parameters)
        # Without the first, one that cannot be begun cuts off what is linked to it; without the second, a reply that
        # waits for a write to a storage that hangs would keep its file open, and a connection could not be cut off.
        self.can_link = bool(flags & _SUBMIT_ALL and features & _LATE_FILES)
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

    def begin(self, fd: int, pieces: Pieces, ended: Ended, reply: Reply | None = None) -> Write:
        """`ended` is called when the kernel is done with it; until then `fd` stays open. Several pieces, or a reply,
        only where the ring `can_link`. Raises BlockingIOError, with nothing begun and nothing called, while there is no
        room for another write."""
        parts = len(pieces) + (reply is not None)
        if self._in_flight + parts > RING_WRITES:
            raise BlockingIOError
        assert parts == 1 or (self.can_link and parts <= _PARTS)
        number = self._number = self._number + _PARTS
        holds, lengths = [], []
        part, last = number, number + parts - 1
        for offset, data in pieces:
            length = len(data)
            address, hold = _pinned(data)
            holds.append(hold)
            lengths.append(length)
            self._add(_BY_A_WORKER if part == last else _THEN, fd, offset, address, length, part)
            part += 1
        if reply is not None:
            reply.is_left = True
            self._add(_BY_A_WORKER, reply.fd, 0, _address_of_bytes(reply.data), len(reply.data), part)
        self._in_flight += parts
        write = self._writes[number] = Write(holds, lengths, ended, reply)
        if not self.is_gathering:
            self._submit()
        return write

    def _add(self, flags: int, fd: int, offset: int, address: int, length: int, part: int) -> None:
        submitted = self._submitted
        at = (submitted & self._sq_mask) * _SUBMISSION_BYTES
        _SUBMISSION.pack_into(self._submissions, at, _OP_WRITE, flags, 0, fd, offset, address, length, 0, part)
        self._submitted = submitted + 1
        self._gathered += 1

    def gather(self) -> None:
        """What begins from now on is handed to the kernel by `submit`, in one call."""
        self.is_gathering = True

    def submit(self) -> None:
        self.is_gathering = False
        if self._gathered:
            self._submit()

    def _submit(self) -> None:
        if self.apart is not None and self._gathered > _PARTS:
            self.apart.keep()  # several writes: while the workers make them, others are taken
        self._words[self._sq_tail] = self._submitted & _LOW_32
        taken = _call(_ENTER, self._fd, self._gathered, 0, 0, None, 0)
        self._gathered -= max(0, taken)
        if self._gathered:
            self._hold_rest()
        if self._gathered and not self._is_submitting:
            self._is_submitting = True
            leave_to_loop(partial(trio.lowlevel.spawn_system_task, self._submit_rest))

    def _hold_rest(self) -> None:
        """Of a write of which the kernel has taken the beginning alone: it would wait for nothing with the rest. Those
        behind it move up, and do not wait for it."""
        first = self._submitted - self._gathered
        number = self._submission(first)[-1]
        part = number % _PARTS
        write = self._writes[number - part]
        if not write.follows(part):
            return
        left = [self._submission(first + each) for each in range(self._gathered)]
        rest = [each for each in left if each[-1] // _PARTS == number // _PARTS]
        self._submitted, self._gathered = first, 0
        for submission in left[len(rest) :]:
            self._add(*submission)
        write.hold(part, partial(self._go_on, rest))

    def _submission(self, number: int) -> tuple[int, ...]:
        """As `_add` takes it."""
        at = (number & self._sq_mask) * _SUBMISSION_BYTES
        _operation, flags, _, fd, offset, address, length, _, part = _SUBMISSION.unpack_from(self._submissions, at)
        return flags, fd, offset, address, length, part

    def _go_on(self, rest: Sequence[tuple[int, ...]], is_to_be_done: bool) -> None:
        if not is_to_be_done:
            self._in_flight -= len(rest)
            return
        for submission in rest:
            self._add(*submission)
        if not self.is_gathering:
            self._submit()

    async def _submit_rest(self) -> None:
        """The kernel had no memory for it."""
        while self._gathered:
            await trio.sleep(_AGAIN_S)
            self._submit()
        self._is_submitting = False

    @property
    def has_ended(self) -> bool:
        """Whether there may be anybody to `deliver` to."""
        return self._delivered != self._words[self._cq_tail] or bool(self.left_behind)

    def deliver(self) -> bool:
        """To everybody whose write has ended; whether there was anybody."""
        if self.left_behind:
            self._tell_of_left_behind()
        tail = self._words[self._cq_tail]
        if self._delivered == tail:
            return False
        while True:
            if not _LOADS_IN_ORDER:
                self._clear_event()  # as a barrier between the tail and what lies before it
            while (delivered := self._delivered) != tail:
                at = self._cq_entries + (delivered & self._cq_mask) * _COMPLETION_BYTES
                number, result, _flags = _COMPLETION.unpack_from(self._shared, at)
                self._delivered = self._words[self._cq_head] = (delivered + 1) & _LOW_32
                self._in_flight -= 1
                part = number % _PARTS
                write = self._writes[number - part]
                if write.end(part, result):
                    del self._writes[number - part]
            tail = self._words[self._cq_tail]
            if self._delivered == tail:
                return True

    def _tell_of_left_behind(self) -> None:
        """Of what threads make that the event loop did not wait for."""
        for made in tuple(self.left_behind):
            if made.tell():
                self.left_behind.remove(made)

    def _clear_event(self) -> None:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return

    async def serve(self) -> None:
        """Deliver until cancelled. If the kernel is not done with some by then, it keeps what it has for ever."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._event)
                # Not for each delivery: 4 % more writes of 4 KiB. What is signalled after this wakes us again.
                self._clear_event()
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


def hear() -> None:
    """Of all that the kernel has done, and may have told somebody of: before anybody looks at what that has changed."""
    ring = _RING.get(None)
    if ring is not None:
        ring.deliver()


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


def _set_up(parameters: bytearray) -> int:
    return int(_call(_SETUP, int(RING_WRITES), ctypes.byref(ctypes.c_char.from_buffer(parameters))))


def _pinned(data: bytes | bytearray | memoryview) -> tuple[int, object]:
    """Where the bytes are, and what to keep as long as they are to be there."""
    if isinstance(data, bytes):
        return _address_of_bytes(data), data
    if isinstance(data, memoryview) and data.readonly:
        data = bytes(data)
        return _address_of_bytes(data), data
    start = ctypes.c_char.from_buffer(data)
    return ctypes.addressof(start), start


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
