"""The specification of standby in its own words, for one device: when it must be on, and when it may be.

Fed with what the store has answered, what the operators did, and what the device says; nothing is asked of the standby
machine but its state. Invariant: `must` implies `may`.
"""

import errno
from dataclasses import dataclass

from ploopfs.device.standby import STANDBY_ERRNOS, State
from tests.storm.trace import Violation


@dataclass(slots=True)
class Rules:
    """`is_key_in` and `is_attached` are the two fuses. `must`: a request of the present generation has met one of the
    three errnos with both fuses in, and nobody has recovered the device or let go of it since. `may`: anything has.
    `fsync_answer` is what an fsync of this generation has failed with: it fails every later one, too.
    `is_loss_known`: it has met one of the three errnos with both fuses in. Whatever became of the fuses since, no flush
    of it is confirmed, so one that is asked for with both in again leads into standby. `is_loss_possible`: it has met
    one with a fuse out, which means the same if something was unconfirmed then. `times_on` and `times_left`
    count the transitions, `times_detached` those out of standby without a recovery."""

    device: str
    is_key_in: bool = False
    is_attached: bool = False
    must: bool = False
    may: bool = False
    fsync_answer: int = 0
    is_loss_known: bool = False
    is_loss_possible: bool = False
    is_on: bool = False
    generation_at_on: int = 0
    times_on: int = 0
    times_left: int = 0
    times_detached: int = 0

    @property
    def is_armed(self) -> bool:
        return self.is_key_in and self.is_attached

    @property
    def keeps_for_recovery(self) -> bool:
        """What was acknowledged is kept though the target lets go: the loss is known."""
        return self.is_on or self.is_loss_known or bool(self.fsync_answer)

    def attached(self) -> None:
        self.is_attached = True

    def detached(self) -> None:
        self.is_loss_known |= self.is_on
        self.is_attached = self.must = self.may = False

    def key(self, is_in: bool) -> None:
        self.is_key_in = is_in

    def answered(self, number: int, operation: str, *, is_request: bool, is_current: bool) -> None:
        """The store has answered an operation on a file; `is_current`: of the stack in force."""
        if not is_current:
            return
        if operation == "fsync":
            self.fsync_answer = self.fsync_answer or number
        if self.is_armed and number in STANDBY_ERRNOS:
            self.may = self.is_loss_known = True
            self.must |= is_request
        elif is_request and number in STANDBY_ERRNOS and (operation, number) != ("read", errno.EIO):
            self.is_loss_possible = True

    def condemned(self) -> None:
        """A stack that was lost is in force again, since the table that was to take its place is gone."""
        self.may = True

    def lock_lost(self) -> None:
        """We have the lock of the top no more: somebody else may have its lease."""
        self.may = self.is_loss_known = True

    def switched_on(self, generation: int) -> None:
        if not self.is_armed:
            raise Violation(f"{self.device}: standby with a fuse out")
        is_lost = self.is_loss_known or self.is_loss_possible or self.fsync_answer in STANDBY_ERRNOS
        if not self.may and not is_lost:
            raise Violation(f"{self.device}: standby, and the present generation has met no such answer")
        if self.is_on:
            raise Violation(f"{self.device}: switched into standby twice")
        self.is_on, self.generation_at_on = True, generation
        self.times_on += 1

    def switched_off(self, generation: int, *, was_detached: bool, is_stopped: bool) -> None:
        """`is_stopped`: no request can reach the old stack any more."""
        if not self.is_on:
            raise Violation(f"{self.device}: left standby, and was not in it")
        self.is_on = False
        self.times_left += 1
        if was_detached:
            self.times_detached += 1
            return
        if generation == self.generation_at_on and not is_stopped:
            raise Violation(f"{self.device}: left standby on the old stack")
        self.must = self.may = False

    def swapped(self, *, is_degraded: bool) -> None:
        """Another stack is in force: what the old one has met does not count, unless an error target only covers it."""
        self.must = self.may = False
        if not is_degraded:
            self.fsync_answer, self.is_loss_known, self.is_loss_possible = 0, False, False

    def check(self, state: State) -> None:
        """When nobody can go on by himself."""
        expected = State.NOT_SUPPORTED if not self.is_attached else State.ON if self.is_on else State.OFF
        if state is not expected:
            raise Violation(f"{self.device}: standby reads {state.value!r}, and the events say {expected.value!r}")
        if self.must and not self.is_on:
            raise Violation(f"{self.device}: a request has met a lost store with both fuses in, and standby is off")
