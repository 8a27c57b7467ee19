"""Any Files with faults on command: the filter that an injector uses, with rules made by a test.

Fault model: see `ploopfs.engine.inject.filter`. Unlike an injector's, these rules are asked in the order in which they
were made, name paths and not levels, and see every operation. Open files obey rules made after they were opened.
"""

from dataclasses import dataclass, field

import trio

from ploopfs.engine.file import File, Files
from ploopfs.engine.inject.filter import OPERATIONS, FilteredFile, FilteredFiles, Operation
from ploopfs.engine.inject.rule import Rule, Sectors


@dataclass(slots=True)
class Faults:
    """The rules in force. `log` holds every operation that was asked for, in order."""

    rules: list[Rule] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)

    def fail(self, errno: int, *operations: str, count: int | None = None, skip: int = 0, after: bool = False) -> Rule:
        """Answer these operations (all, if none is named) with `errno` until the rule is removed or used up."""
        return self._add(Rule(_chosen(operations), errno=errno, count=count, skip=skip, after=after))

    def pause(self, *operations: str, count: int | None = None, late: bool = False) -> Rule:
        """Hold these operations until `rule.released` is set; with `late` what was given up by then happens, too."""
        return self._add(Rule(_chosen(operations), released=trio.Event(), count=count, late=late))

    def on(self, path: str, rule: Rule) -> Rule:
        """Restrict a rule to one path."""
        rule.path = path
        return rule

    def remove(self, rule: Rule) -> None:
        self.rules.remove(rule)

    def match(self, operation: Operation) -> Rule | None:
        self.log.append((operation.name, operation.path))
        return next((rule for rule in self.rules if rule.takes(operation, self)), None)

    def level(self, _operation: Operation) -> int | None:
        """No stack is known here."""
        return None

    def holds(self, _operation: Operation, _sectors: Sectors) -> bool:
        return False

    def _add(self, rule: Rule) -> Rule:
        self.rules.append(rule)
        return rule


def _chosen(operations: tuple[str, ...]) -> frozenset[str]:
    assert OPERATIONS.issuperset(operations), operations
    return frozenset(operations) or OPERATIONS


class FaultyFile(FilteredFile):
    """One open file that obeys `Faults`."""


class FaultyFiles(FilteredFiles):
    """Files whose operations obey `faults`."""

    def __init__(self, inner: Files, faults: Faults) -> None:
        super().__init__(inner, faults)
        self.faults = faults

    def wrap(self, file: File) -> FaultyFile:
        return FaultyFile(file, self.faults)
