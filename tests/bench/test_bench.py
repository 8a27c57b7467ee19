"""What the figures are made of: turns, medians, images, tables; and the whole of it for real, as short as it gets."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from ploopfs.bounds import UNFLUSHED_MIB
from ploopfs.engine.counters import Counters
from ploopfs.engine.delta import ImageSpec
from ploopfs.engine.opening import StackSpec, open_stack
from ploopfs.engine.os_file import OsFiles
from tests.bench.__main__ import main
from tests.bench.cases import CLUSTER_BYTES, FULL, MIB, USING_UP, Case, Image, Plan, fio_options
from tests.bench.fio import BenchError, counted
from tests.bench.images import content, copy, empty_image, full_file, full_image, stack
from tests.bench.measure import Cost, Result, Results, Sample, cost, joined, measure, rounds
from tests.bench.peers import FILE, QEMU, Peer, planes
from tests.bench.profile import profile
from tests.bench.report import Figures, doubt, ratio, spread
from tests.mounted.daemon import HANG_S, ROOT, until
from tests.realparts import need

LIBAIO = {"ioengine": "libaio"}


def peer(name: str) -> Peer:
    return Peer(name, Path(name), (Path(f"{name}.hds"),), (1,))


def sample(rate: float, cpu_us: float | None = 10) -> Sample:
    return Sample(rate, 100, cpu_us)


def test_every_peer_is_measured_once_in_each_round_and_another_one_is_first_each_time() -> None:
    peers = [peer(name) for name in "abc"]
    order = list(rounds(peers, 1, range(6)))
    by_run = [[each.name for run, each in order if run == number] for number in range(6)]
    assert all(sorted(names) == ["a", "b", "c"] for names in by_run)
    assert [names[0] for names in by_run] == ["b", "c", "a", "b", "c", "a"]


def test_a_result_is_the_median_of_its_runs_beside_their_spread() -> None:
    result = Result.of([sample(100, 7), sample(1, 9), sample(110, 8)])
    assert (result.rate, result.cpu_us, result.spread) == (100, 8, 1.09)
    assert Result.of([sample(1, None)]).cpu_us is None


def test_each_run_asks_the_peer_for_its_own_number() -> None:
    asked = []

    def once(case: Case, of: Peer, run: int) -> Sample:
        asked.append((case.name, of.name, run))
        return sample(run + 1)

    results = measure(FULL[:2], [peer("a"), peer("b")], range(3), once, lambda _text: None)
    assert {name: results[FULL[1].name][name].rate for name in "ab"} == {"a": 2, "b": 2}
    assert len(set(asked)) == len(asked) == 12


def test_what_was_measured_at_different_times_is_one_result_with_all_runs_in_their_order() -> None:
    def once(case: Case, of: Peer, run: int) -> Sample:
        return sample(1 + 100 * FULL.index(case) + 10 * "ab".index(of.name) + run)

    def measured(runs: range) -> Results:
        return measure(FULL[:2], [peer("a"), peer("b")], runs, once, lambda _text: None)

    assert joined([measured(range(run, run + 1)) for run in range(3)]) == measured(range(3))


@pytest.mark.parametrize("plan", [Plan.quick(), Plan.full()], ids=["quick", "full"])
def test_no_two_runs_use_up_the_same_clusters_and_all_lie_on_the_disk(plan: Plan) -> None:
    for image in (Image.EMPTY, Image.OVER):
        cases = [case for case in USING_UP if case.image is image]
        regions = [plan.region(case, run) for case in cases for run in range(plan.runs)]
        assert all(max(one.start, other.start) >= min(one.stop, other.stop) for one, other in combinations(regions, 2))
        assert max(region.stop for region in regions) <= plan.disk_bytes(image)


def test_a_case_that_uses_up_writes_once_to_each_cluster_of_its_region() -> None:
    plan, clusters = Plan.quick(), {}
    for case in USING_UP:
        options = fio_options(case, plan, 0, LIBAIO)
        step = 4096 + int(options["rw"].partition(":")[2])
        assert step == CLUSTER_BYTES
        clusters[case.name] = int(options["size"]) // CLUSTER_BYTES
        assert int(options["io_size"]) // 4096 == clusters[case.name]
    assert clusters == {
        "4 KiB allocating write, QD 1": plan.clusters,
        "4 KiB allocating write, QD 16": 4 * plan.clusters,
        "4 KiB copy-up write, QD 1": plan.copied,
        "4 KiB copy-up write, QD 16": plan.copied,
        "4 KiB allocating write, QD 16, a flush for each 4 MiB": 4 * plan.clusters,
    }


def test_so_many_requests_are_under_way_as_the_case_says() -> None:
    by_depth = {case.depth: fio_options(case, Plan.quick(), 0, LIBAIO) for case in FULL if case.pattern == "randread"}
    assert {depth: options.get("iodepth") for depth, options in by_depth.items()} == {1: None, 16: "16", 32: "32"}
    threads = fio_options(FULL[2], Plan.quick(), 0, {"ioengine": "psync"})
    assert (threads["numjobs"], threads.get("iodepth")) == ("32", None)


def test_who_flushes_does_so_whenever_he_has_written_what_ploopfs_keeps_by_default() -> None:
    flushing = [case for case in FULL if case.flush_mib]
    assert {case.block: fio_options(case, Plan.quick(), 0, LIBAIO)["fsync"] for case in flushing} == {
        "4k": str(UNFLUSHED_MIB * MIB // 4096),
        "1m": str(UNFLUSHED_MIB),
    }
    assert all("fsync" not in fio_options(case, Plan.quick(), 0, LIBAIO) for case in FULL if not case.flush_mib)
    assert len({case.name for case in FULL}) == len(FULL)


def test_a_run_of_fio_that_failed_or_did_nothing_is_no_figure() -> None:
    side = {"total_ios": 0, "iops": 0, "bw_bytes": 0, "lat_ns": {"percentile": {"99.000000": 1000}}}
    done = side | {"total_ios": 5, "iops": 50, "bw_bytes": MIB}
    report = f"a note\n{json.dumps({'jobs': [{'read': side, 'write': done}]})}"
    found = counted(report, 0, "fio")
    assert (found.rate(FULL[3]), found.rate(FULL[6]), found.requests, found.p99_us) == (50, 1, 5, 1)
    for output, code in ((report, 1), ("nothing", 0), (json.dumps({"jobs": [{"read": side, "write": side}]}), 0)):
        with pytest.raises(BenchError):
            counted(output, code, "fio")


def test_what_drifts_is_no_cost_of_what_is_switched() -> None:
    """A machine that gets slower with each run, and by a tenth where the switch is on."""
    state = {"on": False, "runs": 0}

    def once() -> Sample:
        state["runs"] += 1
        return Sample((1000 - state["runs"]) * (0.9 if state["on"] else 1), 100, 11 if state["on"] else 10)

    found = cost(partial(state.__setitem__, "on"), once, 20)
    assert state == {"on": False, "runs": 40}
    assert found.rate == pytest.approx(0.1, abs=0.002)
    assert found.cpu == pytest.approx(0.1)
    assert found.rate_between[0] <= found.rate <= found.rate_between[1]


def test_a_table_says_the_ratio_to_qemu_and_what_is_not_there() -> None:
    first = next(iter(planes()))
    of = {first: Result.of([sample(300)]), QEMU: Result.of([sample(200)]), FILE: Result.of([sample(900, None)])}
    copied = {first: Result.of([sample(50)])}
    figures = Figures({"machine": "this"}, {FULL[0].name: of, USING_UP[2].name: copied})
    assert (ratio(of), ratio(copied)) == (1.5, None)
    rates, costs = figures.tables()
    assert [row[-2:] for row in rates.rows] == [["1.50", "1.2"], ["- (nbdfuse)", "1"]]
    assert FILE not in "".join(costs.heads)
    widths = [len(line.split("|")) for line in rates.as_markdown().splitlines()[2:]]
    assert len(set(widths)) == 1
    cases = json.loads(figures.as_json())["cases"]
    assert [(case["ratio"], case["target"]) for case in cases] == [(1.5, 1.2), (None, 1)]


def test_what_slows_a_whole_round_down_is_no_difference_of_depths() -> None:
    machine = [100.0, 50.0, 200.0, 80.0, 120.0]
    rates = {"1": machine, "10": [rate * 1.1 for rate in machine], "100": [*machine[:4], machine[4] * 3]}
    depths = {depth: Result.of([sample(rate) for rate in of]) for depth, of in rates.items()}
    assert spread(depths) == pytest.approx(0.1 / 1.1)
    assert doubt(depths) == pytest.approx(0)


def test_the_less_the_rounds_agree_the_more_doubt_there_is_of_a_spread() -> None:
    other = [100.0, 120.0] * 4
    depths = {"1": Result.of([sample(100)] * 8), "10": Result.of([sample(rate) for rate in other])}
    assert doubt(depths) == pytest.approx(1.57 / 11 / math.sqrt(8))


def test_depths_are_compared_with_the_fastest_and_the_check_with_both_sides() -> None:
    depths = {"1": Result.of([sample(100)]), "10": Result.of([sample(80)]), "100": Result.of([sample(90)])}
    assert spread(depths) == pytest.approx(0.2)
    assert doubt(depths) == 0
    pairs = [(sample(100), sample(99)), (sample(100), sample(97)), (sample(100), sample(98))]
    text = Figures({}, depths={FULL[0].name: depths}, check={FULL[1].name: Cost.of(pairs)}).as_text()
    assert "20.0%" in text
    assert "+2.0%" in text


async def read_stack(deltas: list[Path], size_bytes: int) -> bytes:
    spec = StackSpec(tuple(ImageSpec(str(delta)) for delta in deltas))
    opened = await open_stack(OsFiles(), spec, read_only=True, counters=Counters())
    assert not any(opened.map.is_hole(slot) for slot in range(size_bytes // CLUSTER_BYTES))
    data = bytes(await opened.read(0, size_bytes))
    levels = set(opened.map.levels)
    await opened.aclose(clean=False)
    assert levels == set(range(len(deltas)))
    return data


def test_every_disk_that_is_compared_is_full_and_holds_the_same(tmp_path: Path) -> None:
    import trio  # noqa: PLC0415 - what makes images runs a loop of its own

    size_bytes = 6 * CLUSTER_BYTES
    wanted = b"".join(map(content, range(6)))
    image = copy(full_image(tmp_path / "made.hds", size_bytes), tmp_path / "copy.hds")
    assert len({content(cluster) for cluster in range(6)}) == 6
    found = [
        trio.run(read_stack, [image], size_bytes),
        trio.run(read_stack, stack(tmp_path / "stack", size_bytes, 3), size_bytes),
        full_file(tmp_path / "file", size_bytes).read_bytes(),
    ]
    digests = [hashlib.sha256(data).hexdigest() for data in (wanted, *found)]
    assert all(one == other for one, other in pairwise(digests))


def test_a_copy_keeps_its_holes(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.hds"
    empty_image(sparse, 64 * MIB)
    os.truncate(sparse, 64 * MIB)
    copied = copy(sparse, tmp_path / "copy.hds").stat()
    assert copied.st_size == 64 * MIB
    assert copied.st_blocks * 512 <= 2 * MIB


def test_a_profile_needs_a_file_to_go_to_and_a_profiler(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--profile", FULL[1].name, "--profile-to", "read.png"])
    assert "a file .svg (a flame graph) or .txt" in capsys.readouterr().err
    monkeypatch.setattr("tests.bench.profile.shutil.which", lambda _name: None)
    monkeypatch.setattr("tests.bench.profile.sys.executable", str(tmp_path / "bin" / "python"))
    with pytest.raises(BenchError, match="py-spy is missing: tools/bench --profile puts it into"):
        profile(FULL[1], next(iter(planes())), tmp_path / "read.svg", tmp_path, Plan.quick(), lambda _text: None)


BENCH = (sys.executable, "-m", "tests.bench", "--quick", "--only", "holes")


@pytest.mark.real
def test_all_servers_are_measured_on_the_same_holes_and_nothing_is_left(tmp_path: Path) -> None:
    need(commands=("fio", "qemu-storage-daemon", "qemu-nbd", "nbdfuse"), fuse=True, root=True)
    place = ("--dir", str(tmp_path), "--json")
    done = subprocess.run([*BENCH, *place], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    cases = json.loads(done.stdout)["cases"]
    assert [case["case"] for case in cases] == [case.name for case in USING_UP if case.image is Image.EMPTY]
    servers = {*(f"ploopfs {plane}" for plane in planes()), "fuses out", "qemu", "nbdfuse"}
    for case in cases:
        assert set(case["peers"]) == {*servers, "file"}
        assert all(result["rate"] > 0 for result in case["peers"].values())
        assert sum(result["cpu_us"] or 0 for result in case["peers"].values()) > 0
        assert case["ratio"] > 0
    assert os.listdir(tmp_path) == []


@pytest.mark.real
def test_a_signal_ends_it_and_nothing_stays_mounted(tmp_path: Path) -> None:
    need(commands=("fio", "qemu-storage-daemon", "qemu-nbd", "nbdfuse"), fuse=True, root=True)
    bench = subprocess.Popen(
        [*BENCH, "--dir", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until(lambda: str(tmp_path) in Path("/proc/self/mountinfo").read_text(), "a server has mounted its disk")
    bench.send_signal(signal.SIGTERM)
    _, said = bench.communicate(timeout=HANG_S)
    assert (bench.returncode, said) == (128 + signal.SIGTERM, "")
    assert os.listdir(tmp_path) == []
