"""`sys/fs/ploopfs/metrics`: what all devices of a registry count, in the text format of Prometheus.

Collected while it is read, from numbers that the devices keep anyway; nothing here waits, or is kept between two
readings. Knows nothing of how they count. Invariant: a device that has just come shows every series that does not
depend on what it meets.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ploopfs import __version__
from ploopfs.device.agent_state import AgentState
from ploopfs.device.device import Device
from ploopfs.device.registry import Registry
from ploopfs.device.standby import State
from ploopfs.device.stats import BUCKET_BOUNDS_NS

NS_PER_S = 1e9
_BOUNDS = (*(f"{bound_ns / NS_PER_S:g}" for bound_ns in BUCKET_BOUNDS_NS), "+Inf")

_DEVICES_OF_A_PIECE = 4
"""Some 1.5 ms for the longest metric, the histogram; whoever reads the state of a device waits for one piece."""

Sample = tuple[Sequence[str], float]
"""The values of the labels beside `device`, and the number."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One metric of every device: its name without the prefix, its help, its labels beside `device`, its samples."""

    name: str
    help: str
    samples: Callable[[Device], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    family: type[GaugeMetricFamily] | type[CounterMetricFamily] = GaugeMetricFamily

    def collect(self, devices: Sequence[Device]) -> Metric:
        metric = self.family(f"ploopfs_{self.name}", self.help, labels=("device", *self.labels))
        for device in devices:
            for labels, value in self.samples(device):
                metric.add_metric((device.name, *labels), value)
        return metric


def _one(value: Callable[[Device], float]) -> Callable[[Device], Iterable[Sample]]:
    return lambda device: [((), value(device))]


def _agent_states(device: Device) -> Iterator[Sample]:
    return (((state.value,), float(device.agent.state is state)) for state in AgentState)


def _errors(device: Device) -> Iterator[Sample]:
    for (number, operation), count in device.stats.errors.items():
        yield (errno.errorcode.get(number, str(number)), operation.replace(" ", "_")), count


METRICS: tuple[Shown, ...] = (
    Shown(
        "device_info",
        "1, with what the device is.",
        lambda device: [((device.flavour.name, str(int(device.read_only))), 1)],
        ("flavour", "read_only"),
    ),
    Shown("size_bytes", "Size of the disk.", _one(lambda device: device.size_bytes)),
    Shown("standby", "1 while the device is in standby.", _one(lambda d: d.queue.standby.state is State.ON)),
    Shown(
        "standby_supported",
        "1 while somebody has promised to recover the device (STANDBY_EN).",
        _one(lambda device: device.queue.standby.state is not State.NOT_SUPPORTED),
    ),
    Shown(
        "standby_seconds",
        "Time in standby.",
        _one(lambda device: device.queue.standby.seconds),
        family=CounterMetricFamily,
    ),
    Shown(
        "standby_entered",
        "How often standby was entered.",
        _one(lambda device: device.queue.standby.entered),
        family=CounterMetricFamily,
    ),
    Shown("aborted", "1 while the device is in vz7's aborted state.", _one(lambda device: device.queue.aborted)),
    Shown("suspended", "1 while the device is suspended.", _one(lambda device: device.queue.suspended)),
    Shown("generation", "The stacks that were in force so far.", _one(lambda device: device.queue.generation)),
    Shown("held_requests", "Requests held in standby.", _one(lambda device: device.queue.room.held)),
    Shown(
        "held_oldest_seconds",
        "For how long the oldest of them has been held.",
        _one(lambda device: device.queue.room.oldest_held_s or 0),
    ),
    Shown("held_bytes", "Data of held writes.", _one(lambda device: device.queue.room.held_bytes)),
    Shown("parked_requests", "Requests that wait for another reason.", _one(lambda device: device.queue.parked)),
    Shown("in_flight_requests", "Requests under way.", _one(lambda device: device.stats.in_flight)),
    Shown(
        "unflushed_bytes",
        "Acknowledged writes that no flush has confirmed, kept to be written again.",
        _one(lambda device: device.unflushed.data_bytes),
    ),
    Shown(
        "requests",
        "Requests that ended, well or not.",
        lambda device: [((op.value,), stats.ios) for op, stats in device.stats.by_op.items()],
        ("op",),
        CounterMetricFamily,
    ),
    Shown(
        "bytes",
        "Data of requests that ended, well or not.",
        lambda device: [((op.value,), stats.length_bytes) for op, stats in device.stats.by_op.items()],
        ("op",),
        CounterMetricFamily,
    ),
    Shown(
        "backend_errors",
        "Answers of the storage to requests that were errors.",
        _errors,
        ("errno", "operation"),
        CounterMetricFamily,
    ),
    Shown(
        "replaces",
        "Operations that were to put another stack in force; the result is ok or an errno.",
        lambda device: ((key, count) for key, count in device.replace_results.items()),
        ("operation", "result"),
        CounterMetricFamily,
    ),
    Shown("agent_state", "1 for the state that the recovery agent is in.", _agent_states, ("state",)),
    Shown(
        "agent_attempts",
        "Attempts of the recovery agent that ended.",
        lambda device: (((result,), count) for result, count in device.agent.results.items()),
        ("result",),
        CounterMetricFamily,
    ),
)
"""Counters get `_total` behind their names from the library."""


def _latencies(devices: Sequence[Device]) -> Metric:
    metric = HistogramMetricFamily(
        "ploopfs_request_seconds",
        "How long requests took from the gate of the queue to their end; what they waited at the gate is not in it.",
        labels=("device", "op"),
    )
    for device in devices:
        for op, stats in device.stats.by_op.items():
            buckets = list(zip(_BOUNDS, accumulate(stats.buckets), strict=True))
            metric.add_metric((device.name, op.value), buckets, sum_value=stats.duration_ns / NS_PER_S)
    return metric


def exposition(registry: Registry) -> Iterator[str]:
    """In pieces of a few devices each. Who is a device is settled when the first is asked for."""
    devices = tuple(registry.devices.values())
    version = GaugeMetricFamily("ploopfs_build_info", "1, with the version.", labels=("version",))
    version.add_metric((__version__,), 1)
    yield _text(version)
    loaded = "1 while the checks of standby are on (ploop_standby_check)."
    yield _text(GaugeMetricFamily("ploopfs_standby_check", loaded, value=int(registry.key.enabled)))
    for collect in (*(shown.collect for shown in METRICS), _latencies):
        # All lines of a metric stand together, behind one head.
        head = _text(collect(()))
        yield head
        for start in range(0, len(devices), _DEVICES_OF_A_PIECE):
            piece = _text(collect(devices[start : start + _DEVICES_OF_A_PIECE])).removeprefix(head)
            if piece:
                yield piece


def _text(metric: Metric) -> str:
    return generate_latest(_Collected(metric)).decode()


class _Collected(CollectorRegistry):
    """One metric, collected already."""

    def __init__(self, metric: Metric) -> None:
        super().__init__(auto_describe=False)
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric
