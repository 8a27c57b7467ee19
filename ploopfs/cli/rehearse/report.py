"""What became of each step of a rehearsal, told on a terminal, as JSON and as JUnit XML.

Knows nothing of how steps are played.
"""

import os
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Outcome(Enum):
    """The value is what reports say."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """One step. `detail` is what it found, or why it failed or was not played (empty: a step before it failed)."""

    number: int
    line: int
    step: str
    outcome: Outcome
    seconds: float
    detail: str = ""


_COLOURS = {Outcome.PASSED: "32", Outcome.FAILED: "31", Outcome.SKIPPED: "33"}
_MARKS = {Outcome.PASSED: "ok", Outcome.FAILED: "FAILED", Outcome.SKIPPED: "--"}


class Teller:
    """Tells each step on standard output; on a terminal also the one that is being played."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stdout.isatty() and not quiet
        self._coloured = self._terminal and not os.environ.get("NO_COLOR")

    def title(self, name: str, about: str) -> None:
        self._say(name if not about else f"{name}: {' '.join(about.split())}")

    def begun(self, number: int, total: int, step: str) -> None:
        if self._terminal:
            print(f"\r\033[K  ...     {number}/{total}  {step}", end="", flush=True)

    def ended(self, result: Result) -> None:
        mark = _MARKS[result.outcome].ljust(6)
        if self._coloured:
            mark = f"\033[{_COLOURS[result.outcome]}m{mark}\033[m"
        clear = "\r\033[K" if self._terminal else ""
        self._say(f"{clear}  {mark}  {result.seconds:6.2f} s  line {result.line}: {result.step}")
        if result.outcome is not Outcome.PASSED and result.detail:
            for line in result.detail.splitlines():
                self._say(f"                    {line}")

    def say(self, text: str) -> None:
        self._say(text)

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)


def summary(results: Sequence[Result]) -> str:
    counts = {outcome: sum(result.outcome is outcome for result in results) for outcome in Outcome}
    seconds = sum(result.seconds for result in results)
    told = ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count)
    return f"{told}, {seconds:.1f} s"


def as_json(name: str, path: str, results: Sequence[Result], events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    steps = [asdict(result) | {"outcome": result.outcome.value} for result in results]
    passed = all(result.outcome is not Outcome.FAILED for result in results)
    return {"scenario": name, "file": path, "passed": passed, "steps": steps, "events": list(events)}


def junit(name: str, path: str, results: Sequence[Result], events: Sequence[dict[str, Any]]) -> bytes:
    """One test suite with a test case for each step; the events are its output."""
    failed = sum(result.outcome is Outcome.FAILED for result in results)
    skipped = sum(result.outcome is Outcome.SKIPPED for result in results)
    seconds = f"{sum(result.seconds for result in results):.3f}"
    root = ET.Element("testsuites")
    suite = ET.SubElement(root, "testsuite", name=_clean(name), time=seconds, tests=str(len(results)))
    suite.attrib |= {"failures": str(failed), "errors": "0", "skipped": str(skipped)}
    for result in results:
        case = ET.SubElement(
            suite,
            "testcase",
            classname=_clean(name),
            name=_clean(f"{result.number:03}: {result.step}"),
            file=_clean(path),
            line=str(result.line),
            time=f"{result.seconds:.3f}",
        )
        match result.outcome:
            case Outcome.FAILED:
                first, _, _ = result.detail.partition("\n")
                ET.SubElement(case, "failure", message=_clean(first)).text = _clean(result.detail)
            case Outcome.SKIPPED:
                ET.SubElement(case, "skipped", message=_clean(result.detail or "a step before it failed"))
    ET.SubElement(suite, "system-out").text = _clean("\n".join(map(str, events)))
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _clean(text: str) -> str:
    """XML has no way to write most control characters."""
    return _NOT_IN_XML.sub("?", text)
