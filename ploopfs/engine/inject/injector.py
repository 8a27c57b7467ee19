"""The rules of one device, and its place between the device and its storage.

Knows no grammar. Invariants: a new rule goes before the older ones, and the first that takes an operation decides, as
in the kernel's error injection; an operation that no rule can take any more passes every open file as if there were no
injector, so that one without rules costs nothing.
"""

import itertools
import logging
from collections.abc import Callable

from ploopfs.bounds import MAX_RULES
from ploopfs.engine.file import File, Files
from ploopfs.engine.given_up import GivenUp
from ploopfs.engine.inject.filter import FilteredFile, FilteredFiles, Operation
from ploopfs.engine.inject.rule import Rule, Sectors
from ploopfs.engine.stack import Stack
from ploopfs.errors import BadValue, NoSuchEntry
from ploopfs.image.header import SECTOR_BYTES

log = logging.getLogger(__name__)


class Injector:
    """`rules` is newest first, and spent ones stay in it until they are removed. `last_error` is why the last command
    was refused, empty if it was not: the grammar's caller keeps it here."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.last_error = ""
        self._files: set[InjectedFile] = set()
        self._numbers = itertools.count(1)
        self._stack: Callable[[], Stack | None] = lambda: None

    def follow(self, stack: Callable[[], Stack]) -> None:
        """`stack` tells the device's stack of the moment; before this call no operation has a level."""
        self._stack = stack

    def around(self, files: Files, given_up: GivenUp | None = None) -> Files:
        """The same files, ruled by this injector from now on, whenever they were opened. What happens late by its rules
        keeps off whoever has the same `given_up`."""
        return _InjectedFiles(files, self, given_up)

    def add(self, rule: Rule) -> Rule:
        """Raises BadValue for a rule that could never take anything, and LimitReached."""
        MAX_RULES.check_room(len(self.rules), "rules")
        self._check(rule)
        rule.number = next(self._numbers)
        self.rules.insert(0, rule)
        self._settle()
        return rule

    def remove(self, number: int) -> None:
        """What hangs by the rule goes on. Raises NoSuchEntry."""
        rule = next((rule for rule in self.rules if rule.number == number), None)
        if rule is None:
            known = ", ".join(str(rule.number) for rule in self.rules) or "none"
            raise NoSuchEntry(f"id is {number}, expected that of a rule (there: {known})")
        self.rules.remove(rule)
        self._let_go(rule)

    def remove_all(self) -> None:
        while self.rules:
            self._let_go(self.rules.pop())

    def match(self, operation: Operation) -> Rule | None:
        for rule in self.rules:
            if rule.takes(operation, self):
                if rule.hits == 1:
                    log.info("fault rule %d takes %s of %s", rule.number, operation.name, operation.path)
                if rule.spent:
                    self._settle()
                return rule
        return None

    # --- where an operation lies ----------------------------------------------------------------------------------

    def level(self, operation: Operation) -> int | None:
        """The level of its file; a file that is in no level yet counts by its path, and a writable one as the top, for
        nothing but the top is ever written."""
        stack = self._stack()
        if stack is None:
            return None
        level = stack.level_of_file(operation.file) if operation.file is not None else None
        if level is None:
            level = stack.level_of(operation.path)
        if level is None and operation.writable:
            level = len(stack.deltas) - 1
        return level

    def holds(self, operation: Operation, sectors: Sectors) -> bool:
        stack = self._stack()
        if stack is None or not operation.length:
            return False
        # A probe reads through no file of the stack, and a file that is in no level yet lies under no sector.
        of_file = operation.file
        level = stack.level_of(operation.path) if of_file is None else stack.level_of_file(of_file)
        if level is None:
            return False
        wanted = range(sectors.first * SECTOR_BYTES, (sectors.last + 1) * SECTOR_BYTES)
        return stack.serves(wanted, level, operation.offset, operation.length)

    # --- the files ------------------------------------------------------------------------------------------------

    def adopt(self, file: "InjectedFile") -> None:
        self._files.add(file)
        file.filter_only(self._taken)

    def drop(self, file: "InjectedFile") -> None:
        self._files.discard(file)

    @property
    def _taken(self) -> frozenset[str]:
        """Operations that some rule may still take."""
        return frozenset[str]().union(*(rule.operations for rule in self.rules if not rule.spent))

    def _settle(self) -> None:
        taken = self._taken
        for file in self._files:
            file.filter_only(taken)

    def _let_go(self, rule: Rule) -> None:
        if rule.released is not None:
            rule.released.set()
        self._settle()

    def _check(self, rule: Rule) -> None:
        stack = self._stack()
        if stack is None:
            return
        if rule.level is not None and rule.level >= len(stack.deltas):
            raise BadValue(f"level is {rule.level}, expected 0 to {len(stack.deltas) - 1}: the levels of the stack")
        disk_sectors = stack.size_bytes // SECTOR_BYTES
        if rule.sectors is not None and rule.sectors.first >= disk_sectors:
            raise BadValue(f"start is {rule.sectors.first}, expected a sector of the disk, which has {disk_sectors}")


class InjectedFile(FilteredFile):
    """An open file that its injector can put itself in front of, and get out of the way of."""

    def __init__(self, inner: File, injector: Injector) -> None:
        super().__init__(inner, injector)
        self._injector = injector
        injector.adopt(self)

    async def aclose(self) -> None:
        self._injector.drop(self)
        await super().aclose()


class _InjectedFiles(FilteredFiles):
    def __init__(self, inner: Files, injector: Injector, given_up: GivenUp | None) -> None:
        super().__init__(inner, injector, given_up)
        self._injector = injector

    def wrap(self, file: File) -> InjectedFile:
        return InjectedFile(file, self._injector)
