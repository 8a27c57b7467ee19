"""What is said about the figures: tables of text, for a README, or JSON.

Knows figures, and not how they were taken. Invariant: a ratio stands beside the spread that it is to be read with.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, median

from tests.bench.cases import CHECK_COST, DEPTH_SPREAD, FULL, USING_UP
from tests.bench.measure import Cost, Result, Results, middle_half
from tests.bench.peers import NBDFUSE, QEMU

TARGETS = {case.name: case.target for case in (*FULL, *USING_UP)}
UNITS = {case.name: case.unit for case in (*FULL, *USING_UP)}
NONE = "-"

Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    heads: Row
    rows: Sequence[Row]

    def as_text(self) -> str:
        lines = [self.heads, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in lines]
        rows = ["  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(lines, aligned, strict=True)]
        return "\n".join([f"{self.title}:", *rows])

    def as_markdown(self) -> str:
        rule = ["---", *("---:" for _ in self.heads[1:])]
        return "\n".join([f"{self.title}:", "", *(f"| {' | '.join(row)} |" for row in (self.heads, rule, *self.rows))])


@dataclass(slots=True)
class Figures:
    """All that was measured; what was not is empty."""

    conditions: dict[str, str]
    compared: Results = field(default_factory=dict)
    depths: Results = field(default_factory=dict)
    check: dict[str, Cost] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        found = []
        if self.compared:
            found += [_rates(self.compared), _costs(self.compared)]
        if self.depths:
            found.append(_depths(self.depths))
        if self.check:
            found.append(_check(self.check))
        return found

    def as_text(self) -> str:
        stated = "\n".join(f"{name:<11} {text}" for name, text in self.conditions.items())
        return "\n\n".join([stated, *(table.as_text() for table in self.tables())])

    def as_markdown(self) -> str:
        stated = "\n".join(f"- {name}: {text}" for name, text in self.conditions.items())
        return "\n\n".join([*(table.as_markdown() for table in self.tables()), stated])

    def as_json(self) -> str:
        def results(of: Results) -> list[dict[str, object]]:
            return [
                {"case": case, "unit": UNITS.get(case, ""), "target": TARGETS.get(case), "ratio": ratio(by_peer)}
                | {"peers": {name: asdict(result) for name, result in by_peer.items()}}
                for case, by_peer in of.items()
            ]

        depths = [
            {"case": case, "depths": _as_dicts(of), "spread": spread(of), "doubt": doubt(of)}
            for case, of in self.depths.items()
        ]
        whole = {"conditions": self.conditions, "cases": results(self.compared), "stack_depths": depths}
        return json.dumps(whole | {"standby_check": _as_dicts(self.check)}, indent=2)


def _as_dicts(of: Mapping[str, Result] | Mapping[str, Cost]) -> dict[str, object]:
    return {name: asdict(each) for name, each in of.items()}


def ratio(of: dict[str, Result]) -> float | None:
    """Of the first to QEMU: to its own export, or to its NBD server's where it has none of the kind."""
    reference = of.get(QEMU) or of.get(NBDFUSE)
    return next(iter(of.values())).rate / reference.rate if reference else None


def spread(of: dict[str, Result]) -> float:
    """Between the slowest depth and the fastest, each by the median of what it makes of a round's mean: a minute in
    which the machine is slow is the same for all of them."""
    parts = [median(of_rounds) for of_rounds in _parts_of_rounds(of)]
    return (max(parts) - min(parts)) / max(parts)


def doubt(of: dict[str, Result]) -> float:
    """By so much the spread may be another: 1.57 times the middle half of the rounds by the root of their number (the
    notch of a box plot), of the depth of which it is the most."""
    ordered = [sorted(of_rounds) for of_rounds in _parts_of_rounds(of)]
    return max(1.57 * (high - low) / math.sqrt(len(each)) for each in ordered for low, high in [middle_half(each)])


def _parts_of_rounds(of: dict[str, Result]) -> list[list[float]]:
    rounds = zip(*([run.rate for run in result.runs] for result in of.values()), strict=True)
    parts = ([rate / mean(rates) for rate in rates] for rates in rounds)
    return [list(of_one) for of_one in zip(*parts, strict=True)]


def _peers(results: Results) -> list[str]:
    return list(dict.fromkeys(name for of in results.values() for name in of))


def _rate(of: Result) -> str:
    """One run has no spread."""
    return f"{of.rate:.0f} ±{of.spread / 2:.0%}" if len(of.runs) > 1 else f"{of.rate:.0f}"


def _rates(results: Results) -> Table:
    names = _peers(results)
    heads = ["case", "unit", *names, "ratio to qemu", "wanted"]
    rows = []
    for case, of in results.items():
        rates = [_rate(of[name]) if name in of else NONE for name in names]
        found, target = ratio(of), TARGETS.get(case)
        compared = f"{found:.2f}" if found is not None else NONE
        by = "" if QEMU in of else f" ({NBDFUSE})"
        rows.append([case, UNITS[case], *rates, compared + by, f"{target:g}" if target else NONE])
    return Table("Requests or MiB per second", heads, rows)


def _costs(results: Results) -> Table:
    names = [name for name in _peers(results) if any(of[name].cpu_us for of in results.values() if name in of)]
    heads = ["case", *(f"CPU {name}" for name in names), *(f"p99 {name}" for name in names)]
    rows = []
    for case, of in results.items():
        times = [f"{of[name].cpu_us:.0f}" if name in of else NONE for name in names]
        rows.append([case, *times, *(f"{of[name].p99_us:.0f}" if name in of else NONE for name in names)])
    title = "Microseconds: CPU time of the server per request, and latency that one in a hundred exceeds"
    return Table(title, heads, rows)


def _depths(results: Results) -> Table:
    depths = _peers(results)
    heads = ["case", *(f"{depth} deep" for depth in depths), "spread in a round", "wanted"]
    rows = [
        [
            case,
            *(_rate(of[depth]) for depth in depths),
            f"{spread(of):.1%} ±{doubt(of):.1%}",
            f"{DEPTH_SPREAD:.0%}",
        ]
        for case, of in results.items()
    ]
    return Table("Depth of the stack", heads, rows)


def _check(costs: dict[str, Cost]) -> Table:
    heads = ["case", "less requests", "(half of the pairs)", "more CPU", "(half of the pairs)", "pairs", "wanted"]
    rows = [
        [
            case,
            f"{of.rate:+.1%}",
            _between(of.rate_between),
            f"{of.cpu:+.1%}",
            _between(of.cpu_between),
            str(of.pairs),
            f"{CHECK_COST:.0%}",
        ]
        for case, of in costs.items()
    ]
    return Table("Both fuses in, against both out", heads, rows)


def _between(parts: tuple[float, float]) -> str:
    return " to ".join(f"{part:+.1%}" for part in parts)
