"""What many runs have gone through, added up, and how that is told: to people, to programs, to the log of CI.

Knows nothing of how runs are made.
"""

from collections import Counter
from dataclasses import dataclass, field

from tests.storm.run import Outcome


@dataclass(slots=True)
class Figures:
    """`failed` are the outcomes with a violation."""

    runs: int = 0
    steps: int = 0
    simulated_s: float = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.steps += outcome.at_step
        self.simulated_s += outcome.simulated_s
        self.counts += outcome.counts
        if outcome.violation:
            self.failed.append(outcome)

    def sum_of(self, prefix: str) -> int:
        return sum(count for kind, count in self.counts.items() if kind.startswith(prefix))

    @property
    def numbers(self) -> dict[str, int | float]:
        counts = self.counts
        return {
            "runs": self.runs,
            "failed": len(self.failed),
            "steps": self.steps,
            "simulated_hours": round(self.simulated_s / 3600, 3),
            "requests": self.sum_of("request "),
            "storage_operations": counts["storage operations"],
            "storage_errors": counts["storage errors"],
            "made_by_threads": counts["made by threads"],
            "late_changes": counts["late changes"],
            "faults": self.sum_of("fault "),
            "forgotten": counts["forgot"],
            "outages": counts["standby_on"],
            "recoveries": counts["standby_off"],
            "stacks_swapped": counts["swapped"],
            "operations_of_operators": self.sum_of("flow "),
            "agent_attempts": counts["agent_attempt"],
            "kills": counts["kill"],
            "power_losses": counts["power loss"],
            "closes": counts["close"],
        }

    def __str__(self) -> str:
        numbers = self.numbers
        return (
            f"{numbers['runs']} runs, {numbers['simulated_hours']:.2f} hours simulated, {numbers['failed']} failed; "
            f"{numbers['requests']} requests, {numbers['storage_operations']} storage operations, "
            f"{numbers['storage_errors']} of them answered with an error; survived: {numbers['faults']} faults of "
            f"stores, {numbers['outages']} outages, {numbers['kills']} kills, {numbers['power_losses']} power losses"
        )
