"""Runs the cases on the peers, in turn, and takes the medians.

Knows no fio and no server: it is given something that measures once. Invariant: in each round every peer runs a case
once, and another one is first each time: a slow minute of the machine hits all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.cases import Case, Plan, fio_options
from tests.bench.fio import fio
from tests.bench.images import settle
from tests.bench.peers import Peer


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. `rate` is in the unit of its case; `cpu_us` is the server's CPU time per request, None if there is no
    server."""

    rate: float
    p99_us: float
    cpu_us: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """All runs of one case on one peer."""

    rate: float
    p99_us: float
    cpu_us: float | None
    spread: float
    """From the slowest to the fastest run, as a part of the median: a ratio nearer to 1 than this says nothing."""
    runs: list[Sample]

    @classmethod
    def of(cls, runs: list[Sample]) -> "Result":
        rates = [run.rate for run in runs]
        middle = median(rates)
        times = [run.cpu_us for run in runs if run.cpu_us is not None]
        cpu_us = median(times) if times else None
        return cls(middle, median(run.p99_us for run in runs), cpu_us, (max(rates) - min(rates)) / middle, runs)


Results = dict[str, dict[str, Result]]
"""By the name of the case, by that of the peer."""

Once = Callable[[Case, Peer, int], Sample]
"""Measures a case on a peer, for the run of this number."""


def rounds(peers: Sequence[Peer], first: int, runs: range) -> Iterator[tuple[int, Peer]]:
    for run in runs:
        start = (first + run) % len(peers)
        yield from ((run, peer) for peer in (*peers[start:], *peers[:start]))


def measure(
    cases: Sequence[Case], peers: Sequence[Peer], runs: range, once: Once, tell: Callable[[str], None]
) -> Results:
    results: Results = {}
    for number, case in enumerate(cases):
        samples: dict[str, list[Sample]] = {peer.name: [] for peer in peers}
        for run, peer in rounds(peers, number, runs):
            tell(f"{case.name}: {peer.name}, run {run + 1}")
            samples[peer.name].append(once(case, peer, run))
        results[case.name] = {name: Result.of(of) for name, of in samples.items()}
    return results


def joined(parts: Sequence[Results]) -> Results:
    """Of the same cases and peers, at different times."""
    return {
        case: {name: Result.of([run for part in parts for run in part[case][name].runs]) for name in of}
        for case, of in parts[0].items()
    }


def by_fio(plan: Plan, deep: dict[str, str]) -> Once:
    def once(case: Case, peer: Peer, run: int) -> Sample:
        cpu_us = peer.cpu_us()
        done = fio(peer.disk, fio_options(case, plan, run, deep), direct=not peer.is_file)
        cpu_us = peer.cpu_us() - cpu_us
        if case.is_write:
            settle(peer.images[-1])
        return Sample(done.rate(case), done.p99_us, None if peer.is_file else cpu_us / done.requests)

    return once


@dataclass(frozen=True, slots=True)
class Cost:
    """Of something that is switched on and off between short runs: parts of the rate and of the CPU time per request,
    the medians over the pairs of neighbours, and the interval that the middle half of the pairs lies in."""

    rate: float
    cpu: float
    rate_between: tuple[float, float]
    cpu_between: tuple[float, float]
    pairs: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sample, Sample]]) -> "Cost":
        """Each pair is without and with."""
        rates = sorted(1 - with_it.rate / without.rate for without, with_it in pairs)
        times = sorted((with_it.cpu_us or 0) / (without.cpu_us or 1) - 1 for without, with_it in pairs)
        return cls(median(rates), median(times), middle_half(rates), middle_half(times), len(pairs))


def middle_half(ordered: Sequence[float]) -> tuple[float, float]:
    """The interval that it lies in."""
    return ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]


def cost(switch: Callable[[bool], None], once: Callable[[], Sample], pairs: int) -> Cost:
    """Every other pair begins with it: what drifts in one direction falls on both sides."""
    taken = []
    for number in range(pairs):
        found: dict[bool, Sample] = {}
        for on in (number % 2 == 1, number % 2 == 0):
            switch(on)
            found[on] = once()
        taken.append((found[False], found[True]))
    switch(False)
    return Cost.of(taken)
