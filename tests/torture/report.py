"""What a torture has seen, in numbers that add up over many of them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

_COUNTED = ("troubles", "errors", "calls", "bytes")


@dataclass(frozen=True, slots=True)
class Report:
    """`calls` of the users by name, `bytes` written and read, `errors` that they were told, `troubles` that befell."""

    setting: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)

    @property
    def line(self) -> str:
        told = ", ".join(f"{count} {name}" for name, count in sorted(self.errors.items())) or "none"
        return f"{self.setting}: {self.calls.total()} calls, {self.troubles.total()} troubles, errors: {told}"

    def document(self) -> dict[str, dict[str, int]]:
        """What was counted, as JSON has it."""
        return {name: dict(getattr(self, name)) for name in _COUNTED}


def total(reports: Iterable[Report]) -> Report:
    whole = Report()
    for report in reports:
        for name in _COUNTED:
            getattr(whole, name).update(getattr(report, name))
    return whole


def table(report: Report) -> str:
    rows = [(name, *row) for name in _COUNTED for row in _rows(getattr(report, name))]
    return "\n".join(f"{name:<9} {what:<40} {count:>14,}" for name, what, count in rows)


def _rows(counts: "Counter[str]") -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda row: (-row[1], row[0]))
