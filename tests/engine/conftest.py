"""Stacks that many tests of the engine start from."""

import pytest

from tests.engine.rig import BASE, OLD, TOP, Rig


@pytest.fixture
def alone() -> Rig:
    """One image that has cluster 3."""
    rig = Rig()
    rig.put(TOP, {3: OLD})
    return rig


@pytest.fixture
def chain() -> Rig:
    """A base that has cluster 1, and an empty top."""
    rig = Rig(paths=(BASE, TOP))
    rig.put(BASE, {1: OLD})
    rig.put(TOP, {})
    return rig


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no ring, and nothing but the page cache in memory: threads ask the storage."""
    monkeypatch.setattr("ploopfs.engine.os_file.ring_of_loop", lambda: None)
    monkeypatch.setattr("ploopfs.engine.storage.Storage.answers_from_memory", False)
