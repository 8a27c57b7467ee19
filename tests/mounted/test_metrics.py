"""Metrics of a mounted tree: as a scraper reads them, and through an outage."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.daemon import Daemon, device, errno_of, opened, ploopfs, serving
from tests.mounted.disks import make_disk
from tests.mounted.exporter import scraped
from tests.mounted.storage import Bindfs

pytestmark = pytest.mark.real


@pytest.fixture
def daemon(tmp_path: Path, bindfs: Bindfs) -> Iterator[Daemon]:
    make_disk(bindfs.bricks / "disk")
    with serving(tmp_path, device(bindfs.path / "disk")) as running:
        yield running


def lines(daemon: Daemon) -> list[str]:
    return (daemon.mountpoint / "sys/fs/ploopfs/metrics").read_text().splitlines()


def test_an_outage_is_in_the_numbers_and_reading_them_asks_no_store(daemon: Daemon, bindfs: Bindfs) -> None:
    assert 'ploopfs_standby{device="ploop0"} 0.0' in lines(daemon)
    with opened(daemon.disk()) as fd:
        assert os.pwrite(fd, b"x" * 4096, 0) == 4096
        bindfs.kill()
        assert errno_of(os.pwrite, fd, b"x", 0) == "ENOTCONN"
        found = lines(daemon)
        assert 'ploopfs_standby{device="ploop0"} 1.0' in found
        assert 'ploopfs_bytes_total{device="ploop0",op="write"} 4097.0' in found
        assert 'ploopfs_backend_errors_total{device="ploop0",errno="ENOTCONN",operation="write"} 1.0' in found
        assert errno_of(daemon.store, "ploopfs/reopen", "1") == "ENOTCONN"
        bindfs.remount()
        daemon.store("ploopfs/reopen", "1")
    found = lines(daemon)
    assert 'ploopfs_standby{device="ploop0"} 0.0' in found
    assert 'ploopfs_replaces_total{device="ploop0",operation="reopen",result="ENOTCONN"} 1.0' in found
    assert 'ploopfs_replaces_total{device="ploop0",operation="reopen",result="ok"} 1.0' in found


def test_the_verb_prints_the_file_and_the_same_as_json(daemon: Daemon) -> None:
    told = ploopfs("metrics", "-m", daemon.mountpoint)
    assert (told.returncode, told.stderr) == (0, "")
    same = [line for line in lines(daemon) if "standby" in line]
    assert [line for line in told.stdout.splitlines() if "standby" in line] == same
    families = json.loads(ploopfs("metrics", "--json", "-m", daemon.mountpoint).stdout)
    [generation] = [family for family in families if family["name"] == "ploopfs_generation"]
    assert (generation["type"], generation["samples"]) == (
        "gauge",
        [{"name": "ploopfs_generation", "labels": {"device": "ploop0"}, "value": 1.0}],
    )


def test_node_exporter_takes_the_text_as_a_file_of_its_own(daemon: Daemon, tmp_path: Path) -> None:
    place = tmp_path / "textfiles"
    place.mkdir()
    (place / "ploopfs.prom").write_text(ploopfs("metrics", "-m", daemon.mountpoint).stdout)
    answer = scraped("--collector.textfile", f"--collector.textfile.directory={place}")
    assert "node_textfile_scrape_error 0" in answer
    assert 'ploopfs_standby_supported{device="ploop0"} 1' in answer
    assert 'ploopfs_request_seconds_bucket{device="ploop0",op="read",le="+Inf"} 0' in answer
