"""Plays the steps of a scenario on a stage, one after the other, until one finds something else than it expects.

A client of the tree: whatever it does or sees, a shell script could do or see. Invariant: when it is left, every fault
rule that it made is gone and no load runs.
"""

import errno
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from string import Template
from typing import Any

from ploopfs.bounds import CLEANUP_TIMEOUT_S
from ploopfs.cli.inject import rule_line, rules_of, write_command
from ploopfs.cli.rehearse.load import SINGLE_LANE, DiskUser, Load, bounded
from ploopfs.cli.rehearse.report import Outcome, Result, Teller
from ploopfs.cli.rehearse.stage import Stage
from ploopfs.cli.rehearse.telling import described
from ploopfs.config.scenario import (
    AnyStep,
    Command,
    ExpectEvent,
    ExpectLoad,
    ExpectValue,
    Inject,
    Remove,
    Request,
    Scenario,
    Store,
    Verify,
)
from ploopfs.config.scenario import Load as LoadStep
from ploopfs.errors import PloopError, Unmet

ASK_EVERY_S = 0.01
_OUTPUT_SHOWN = 2000


class Player:
    """`recovery` is a command of the user's that stands in for every recovery step; empty: the scenario's own."""

    def __init__(self, scenario: Scenario, stage: Stage, teller: Teller, *, recovery: str = "") -> None:
        self.results: list[Result] = []
        self.events: list[dict[str, Any]] = []
        self._scenario = scenario
        self._stage = stage
        self._tree = stage.tree
        self._teller = teller
        self._recovery = recovery
        self._rules: list[tuple[str, int, str]] = []
        self._loads: dict[str, Load] = {}
        self._ended = False
        self._seen_events = 0
        self._events_fd = os.open(f"{self._tree.mountpoint}/sys/fs/ploopfs/events", os.O_RDONLY | os.O_CLOEXEC)
        self._take_events()
        self.events.clear()

    def play(self) -> bool:
        """Whether everything was as expected."""
        steps = [self._own_recovery(step) for step in self._scenario.steps]
        try:
            failed = False
            for number, step in enumerate(steps, 1):
                told = described(step)
                if failed:
                    self._tell(Result(number, step.line, told, Outcome.SKIPPED, 0.0))
                    continue
                self._teller.begun(number, len(steps), told)
                result = self._played(number, step, told)
                failed = result.outcome is Outcome.FAILED
                self._tell(result)
            return not failed
        finally:
            self._clean_up()

    def _own_recovery(self, step: AnyStep) -> AnyStep:
        if self._recovery and isinstance(step, Store | Command) and step.is_recovery:
            return Command(
                line=step.line,
                device=step.device,
                command=self._recovery,
                is_recovery=True,
                timeout_s=step.timeout_s,
            )
        return step

    def _played(self, number: int, step: AnyStep, told: str) -> Result:
        started_s = time.monotonic()
        try:
            detail = self._play(step)
            outcome = Outcome.PASSED
            if detail.startswith("skipped: "):
                outcome, detail = Outcome.SKIPPED, detail.removeprefix("skipped: ")
        except (PloopError, OSError) as error:
            detail = f"{error.strerror if isinstance(error, OSError) and error.filename is None else error}"
            detail += self._scene(step.device)
            outcome = Outcome.FAILED
        with suppress(OSError):
            self._take_events()
        return Result(number, step.line, told, outcome, time.monotonic() - started_s, detail)

    def _tell(self, result: Result) -> None:
        self.results.append(result)
        self._teller.ended(result)

    def _play(self, step: AnyStep) -> str:
        """What there is to say of a step that was played. Raises Unmet, other PloopErrors and OSError."""
        match step:
            case Inject():
                return self._inject(step)
            case Remove(name=name):
                return self._remove(name)
            case Request():
                return self._request(step)
            case LoadStep():
                return self._load(step)
            case ExpectValue():
                return self._expect_value(step)
            case ExpectEvent():
                return self._expect_event(step)
            case ExpectLoad():
                return self._expect_load(step)
            case Store():
                return self._store(step)
            case Command():
                return self._command(step)
            case Verify(what="disk"):
                return self._verify_disks()
            case Verify():
                return self._verify_images()

    # --- faults ---------------------------------------------------------------------------------------------------

    def _inject(self, step: Inject) -> str:
        write_command(self._tree, step.device, ",".join(["add", *step.words]))
        number = rules_of(self._tree, step.device)[0]["id"]
        assert isinstance(number, int)
        self._rules.append((step.device, number, step.name))
        return f"rule {number}"

    def _remove(self, name: str) -> str:
        removed = [rule for rule in self._rules if not name or rule[2] == name]
        if name and not removed:
            raise Unmet(f"no rule of the name {name} was made")
        for rule in removed:
            write_command(self._tree, rule[0], f"remove,id={rule[1]}")
            self._rules.remove(rule)
        return f"{len(removed)} rules"

    # --- requests -------------------------------------------------------------------------------------------------

    def _user(self, device: str, *, writes: bool) -> DiskUser:
        path = f"{self._tree.mountpoint}/dev/{device}"
        return DiskUser(path, self._stage.actors[device].ledger, lane=SINGLE_LANE, writes=writes)

    def _request(self, step: Request) -> str:
        user = self._user(step.device, writes=step.kind != "read")

        def all_of_them() -> None:
            for number in range(1, step.count + 1):
                found = user.request(step.kind)
                if found != step.errno:
                    which = f"{step.kind} {number} of {step.count}" if step.count > 1 else f"the {step.kind}"
                    raise Unmet(f"{which} ended with {found or 'success'}, expected {step.errno or 'success'}")

        bounded(all_of_them, step.timeout_s, f"{step.count} requests")
        user.close()
        return ""

    def _load(self, step: LoadStep) -> str:
        if step.start:
            if step.device in self._loads:
                raise Unmet(f"a load runs on {step.device} already")
            path, ledger = f"{self._tree.mountpoint}/dev/{step.device}", self._stage.actors[step.device].ledger
            self._loads[step.device] = Load(path, ledger, threads=step.threads, writes=True)
            return ""
        load = self._loads.get(step.device)
        if load is None:
            raise Unmet(f"no load runs on {step.device}")
        load.stop(step.timeout_s)
        del self._loads[step.device]
        errors = ", ".join(f"{count} {name}" for name, count in sorted(load.errors.items())) or "no errors"
        return f"{load.requests} requests, {errors}"

    # --- expectations ---------------------------------------------------------------------------------------------

    def _expect_value(self, step: ExpectValue) -> str:
        deadline_s = time.monotonic() + step.within_s
        while True:
            found = self._tree.attribute(step.device, step.attribute)
            if _is_as_expected(step, found):
                return f"{step.attribute} reads {found!r}"
            if time.monotonic() >= deadline_s:
                raise Unmet(f"{step.attribute} still reads {found!r} after {step.within_s:g} s")
            time.sleep(ASK_EVERY_S)

    def _expect_event(self, step: ExpectEvent) -> str:
        deadline_s = time.monotonic() + step.within_s
        while True:
            self._take_events()
            for index in range(self._seen_events, len(self.events)):
                if self._is_expected(step, self.events[index]):
                    self._seen_events = index + 1
                    return json.dumps(self.events[index])
            if time.monotonic() >= deadline_s:
                since = [event["event"] for event in self.events[self._seen_events :]]
                came = ", ".join(map(str, since[-10:])) or "none"
                raise Unmet(f"no such event within {step.within_s:g} s; those that came: {came}")
            time.sleep(ASK_EVERY_S)

    def _is_expected(self, step: ExpectEvent, event: dict[str, Any]) -> bool:
        of_device = event.get("device") in ("", step.device)
        return (
            of_device
            and event["event"] == step.event
            and all(_shown(event.get(key)) == value for key, value in step.facts)
        )

    def _expect_load(self, step: ExpectLoad) -> str:
        load = self._loads.get(step.device)
        if load is None:
            raise Unmet(f"no load runs on {step.device}")
        deadline_s = time.monotonic() + step.within_s
        while step.errors and not load.errors and time.monotonic() < deadline_s:
            time.sleep(ASK_EVERY_S)
        errors = ", ".join(f"{count} {name}" for name, count in sorted(load.errors.items())) or "no errors"
        if bool(load.errors) is not step.errors:
            raise Unmet(f"the load has met {errors} in {load.requests} requests")
        return f"{load.requests} requests, {errors}"

    # --- acts -----------------------------------------------------------------------------------------------------

    def _store(self, step: Store) -> str:
        directory = "" if step.in_mount else f"sys/block/{step.device}/"
        path = f"{self._tree.mountpoint}/{directory}{step.path}"
        value = Template(step.value).safe_substitute(self._stage.environment(step.device))

        def store() -> str:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, os.fsencode(f"{value}\n"))
            except OSError as error:
                return errno.errorcode.get(error.errno or 0, str(error.errno))
            finally:
                os.close(fd)
            return ""

        found = bounded(store, step.timeout_s, f"the write to {step.path}")
        if found != step.errno:
            reason = "" if step.in_mount else self._tree.attribute(step.device, "ploopfs/last_error")
            because = f" ({reason})" if reason and found else ""
            raise Unmet(f"the write ended with {found or 'success'}{because}, expected {step.errno or 'success'}")
        return ""

    def _command(self, step: Command) -> str:
        """In a process group of its own, so that nothing of it is left when it takes too long. Its output goes to a
        file: a pipe would stay open for as long as anything that it left in the background."""
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", step.command],
                env=self._stage.environment(step.device),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(step.timeout_s)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                raise Unmet(f"the command did not end within {step.timeout_s:g} s") from None
            output.seek(0)
            said = output.read().decode(errors="replace").strip()[-_OUTPUT_SHOWN:]
        if process.returncode != step.exit:
            raise Unmet(f"the command exited with {process.returncode}, expected {step.exit}: {said or 'no output'}")
        return said

    # --- the end --------------------------------------------------------------------------------------------------

    def _verify_disks(self) -> str:
        """Loads end first: what is on its way could not be compared."""
        self._stop_loads(CLEANUP_TIMEOUT_S)
        count = 0
        for device, actor in self._stage.actors.items():
            user = self._user(device, writes=False)

            def check(user: DiskUser = user, blocks: tuple[int, ...] = tuple(actor.ledger)) -> int:
                for block in blocks:
                    user.check(block)
                return len(blocks)

            count += bounded(check, CLEANUP_TIMEOUT_S * 10, f"reading {device}")
            user.close()
        return f"{count} blocks"

    def _verify_images(self) -> str:
        if not self._stage.is_own:
            return "skipped: the mount existed before, and stays"
        self._stop_loads(CLEANUP_TIMEOUT_S)
        self._remove("")
        self._take_events()
        os.close(self._events_fd)
        self._ended = True
        self._stage.end()
        return ""

    def _stop_loads(self, timeout_s: float) -> None:
        while self._loads:
            self._loads.popitem()[1].stop(timeout_s)

    def _clean_up(self) -> None:
        if self._ended:
            return
        for device, number, _name in self._rules:
            with suppress(PloopError, OSError):
                write_command(self._tree, device, f"remove,id={number}")
        with suppress(Unmet, OSError):
            self._stop_loads(CLEANUP_TIMEOUT_S)
        with suppress(OSError):
            self._take_events()
        os.close(self._events_fd)

    # --- what is seen ---------------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        """Reading never blocks: an empty answer is the end for now."""
        if self._ended:
            return
        while lines := os.read(self._events_fd, 1 << 16):
            self.events += [json.loads(line) for line in lines.splitlines()]

    def _scene(self, device: str) -> str:
        """What a reader of a failure wants to know next."""
        names = ("queue/standby", "ploopfs/standby_reason", "ploopfs/last_error", "ploopfs/held", "inflight")
        told = []
        for name in names:
            with suppress(PloopError, OSError):
                told.append(f"\n{device} {name}: {self._tree.attribute(device, name) or '-'}")
        with suppress(PloopError, OSError):
            told += [f"\n{device} fault rule {rule_line(rule)}" for rule in rules_of(self._tree, device)]
        told += [f"\nlog: {line}" for line in self._stage.log_end().splitlines()]
        return "".join(told)


def _is_as_expected(step: ExpectValue, found: str) -> bool:
    match step.compare:
        case "is":
            return found == step.text
        case "matches":
            return re.fullmatch(step.text, found) is not None
        case _:
            return found.isdecimal() and int(found) >= int(step.text)


def _shown(fact: object) -> str:
    return "-" if fact is None else str(fact)
