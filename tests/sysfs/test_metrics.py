"""`sys/fs/ploopfs/metrics`, read by the library's own parser: which series there are, and what their numbers are."""

import errno
from collections.abc import Mapping

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock, wait_all_tasks_blocked

from ploopfs.device.recovery import Patience, Recovery, Reopen
from ploopfs.device.stats import Op
from ploopfs.device.waiting import OnStandby
from ploopfs.sysfs.metrics import METRICS, exposition
from ploopfs.sysfs.nodes import Directory, Report
from ploopfs.sysfs.report import OpenReport
from tests.device.outage import passes
from tests.device.rig import CLUSTER, REQUESTS, TOP, Asked, Rig, errno_of, rig_of, three_deltas
from tests.sysfs.fakes import FakeRegistry, node_at, tree_of

Labels = Mapping[str, str]


class Scrape:
    """What a scraper has read. `types` by family, `values` by name and labels."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.types = {family.name: family.type for family in families}
        self.helps = {family.name: family.documentation for family in families}
        samples = [sample for family in families for sample in family.samples]
        self.values = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
        assert len(self.values) == len(samples), "no series is there twice"

    def __call__(self, name: str, **labels: str) -> float:
        return self.values[f"ploopfs_{name}", frozenset({"device": "ploop0", **labels}.items())]

    def labels_of(self, name: str) -> list[Labels]:
        return [dict(labels) for of, labels in self.values if of == f"ploopfs_{name}"]


async def read(root: Directory) -> str:
    report = node_at(root, "sys/fs/ploopfs/metrics")
    assert isinstance(report, Report)
    return (await OpenReport(report).read(0, 1 << 20)).decode()


def scrape(rig: Rig) -> Scrape:
    return Scrape("".join(exposition(rig.registry)))


@pytest.fixture
async def rig() -> Rig:
    return await rig_of(three_deltas())


async def test_every_metric_has_a_type_a_help_and_units_in_its_name(rig: Rig) -> None:
    found = scrape(rig)
    assert set(found.types) >= {f"ploopfs_{shown.name}" for shown in METRICS}
    assert all(found.helps.values())
    assert all(name.startswith("ploopfs_") for name in found.types)
    assert found.types["ploopfs_request_seconds"] == "histogram"
    counters = {name.removeprefix("ploopfs_") for name, kind in found.types.items() if kind == "counter"}
    assert counters == {
        "standby_seconds",
        "standby_entered",
        "requests",
        "bytes",
        "backend_errors",
        "replaces",
        "agent_attempts",
    }


async def test_a_device_that_has_just_come_shows_zeroes(rig: Rig) -> None:
    found = scrape(rig)
    assert [found(name) for name in ("standby", "standby_supported", "generation")] == [0, 1, 1]
    names = ("standby_seconds_total", "standby_entered_total", "held_requests", "held_oldest_seconds", "held_bytes")
    assert [found(name) for name in names] == [0] * 5
    for op in Op:
        assert found("requests_total", op=op.value) == found("request_seconds_count", op=op.value) == 0
        assert found("request_seconds_bucket", op=op.value, le="+Inf") == 0
    assert found.labels_of("backend_errors_total") == found.labels_of("replaces_total") == []


async def test_requests_are_counted_by_their_kind_with_their_bytes_and_their_time(rig: Rig) -> None:
    for request in (*REQUESTS.values(), REQUESTS[Op.READ]):
        await request(rig.device)
    found = scrape(rig)
    for op, ios, length in ((Op.READ, 2, 1024), (Op.WRITE, 1, 512), (Op.DISCARD, 1, CLUSTER), (Op.FLUSH, 1, 0)):
        assert found("requests_total", op=op.value) == found("request_seconds_count", op=op.value) == ios
        assert found("bytes_total", op=op.value) == length
        assert found("request_seconds_sum", op=op.value) > 0
        buckets = [labels["le"] for labels in found.labels_of("request_seconds_bucket") if labels["op"] == op.value]
        counts = [found("request_seconds_bucket", op=op.value, le=bound) for bound in sorted(buckets, key=float)]
        assert counts == sorted(counts)
        assert counts[-1] == ios


@pytest.mark.expects_warnings
async def test_an_outage_and_what_ended_it_are_in_the_numbers(rig: Rig, autojump_clock: MockClock) -> None:
    device = rig.device
    device.queue.set_on_standby(OnStandby.HOLD)
    await device.write(0, b"kept")
    assert scrape(rig)("unflushed_bytes") == 4
    async with trio.open_nursery() as nursery:
        lost = rig.lose(errno.ENOTCONN)
        writing = Asked(nursery, device.write(2 * CLUSTER, b"x" * 1000))
        await passes(7)
        found = scrape(rig)
        assert [found(name) for name in ("standby", "standby_supported", "standby_entered_total")] == [1, 1, 1]
        assert [found(name) for name in ("held_requests", "held_bytes")] == [1, 1000]
        assert found("held_oldest_seconds") == pytest.approx(7)
        assert found("backend_errors_total", errno="ENOTCONN", operation="write") == 1
        assert await errno_of(device.reopen()) == errno.ENOTCONN
        rig.faults.remove(lost)
        await device.reopen()
        await wait_all_tasks_blocked()
        assert writing.ended
    found = scrape(rig)
    assert [found(name) for name in ("standby", "held_requests", "held_bytes", "held_oldest_seconds")] == [0] * 4
    assert found("standby_seconds_total") > 0
    assert found("standby_seconds_total") == scrape(rig)("standby_seconds_total"), "it has stopped"
    assert found("replaces_total", operation="reopen", result="ENOTCONN") == 1
    assert found("replaces_total", operation="reopen", result="ok") == 1
    assert found("generation") == 2
    assert autojump_clock.current_time() == 7


@pytest.mark.expects_warnings
async def test_the_agent_s_state_and_attempts_are_in_the_numbers(rig: Rig, autojump_clock: MockClock) -> None:
    rig.device.agent.configure(Recovery(Reopen(), Patience(probe=False)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.device.agent.run)
        await wait_all_tasks_blocked()
        assert scrape(rig)("agent_state", state="idle") == 1
        rig.faults.remove(await rig.enter_standby(errno.EIO))
        rig.lose(errno.EBUSY, "open", path=TOP, count=2)
        await passes(2.5)
        found = scrape(rig)
        states = {labels["state"]: found("agent_state", **labels) for labels in found.labels_of("agent_state")}
        assert [state for state, value in states.items() if value] == ["waiting"]
        assert found("agent_attempts_total", result="failed") == 2
        await passes(1)
        assert scrape(rig)("agent_attempts_total", result="ok") == 1
        nursery.cancel_scope.cancel()
    assert autojump_clock.current_time() == 3.5


@pytest.mark.expects_warnings
async def test_an_operation_of_two_words_is_one_label_value(rig: Rig) -> None:
    rule = rig.lose(errno.EBUSY, "punch hole")
    assert await errno_of(REQUESTS[Op.DISCARD](rig.device)) == errno.EBUSY
    rig.faults.remove(rule)
    assert scrape(rig)("backend_errors_total", errno="EBUSY", operation="punch_hole") == 1


async def test_devices_come_and_go_and_the_text_is_longer_than_a_page(registry: FakeRegistry) -> None:
    root = tree_of(registry)
    for number in range(20):
        registry.add(name=f"ploop{number}")
    text = await read(root)
    assert len(text) > 65536
    assert (text.endswith("\n"), text.endswith("\n\n")) == (True, False)
    assert len(Scrape(text).labels_of("standby")) == 20
    assert Scrape(text).values["ploopfs_standby_check", frozenset()] == 1
    del registry.devices["ploop7"]
    left = Scrape(await read(root)).labels_of("standby")
    assert "ploop7" not in [labels["device"] for labels in left]
    assert len(left) == 19
