"""One device with one delta, and the tree around it."""

import pytest

from ploopfs.sysfs.nodes import Directory
from tests.sysfs.fakes import FakeDevice, FakeRegistry, tree_of


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def device(registry: FakeRegistry) -> FakeDevice:
    return registry.add()


@pytest.fixture
def root(registry: FakeRegistry, device: FakeDevice) -> Directory:
    assert registry.devices == {device.name: device}
    return tree_of(registry)
