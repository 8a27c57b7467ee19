"""What a seed draws, it draws again; and nothing that can be drawn is left out."""

from itertools import product
from random import Random

from tests.mounted.flavours import KINDS
from tests.mounted.planes import PLANES
from tests.torture.faults import FAULTS, faults_on
from tests.torture.setting import STORES, Setting

SEEDS = range(1000)


def test_a_seed_brings_its_setting_back() -> None:
    assert [Setting.of(Random(seed)) for seed in SEEDS] == [Setting.of(Random(seed)) for seed in SEEDS]


def test_every_store_flavour_policy_plane_and_way_of_recovery_meet() -> None:
    settings = [Setting.of(Random(seed)) for seed in SEEDS]
    met = {(each.store, each.kind.flavour, each.policy, each.plane, each.agent) for each in settings}
    flavours = [kind.flavour for kind in KINDS]
    assert met == set(product(STORES, flavours, ("fail", "hold"), PLANES, (False, True)))


def test_every_fault_has_a_store_that_can_do_it_and_every_store_dies_and_hangs() -> None:
    of = {store: {fault.name for fault in faults_on(Setting(KINDS[0], "fail", 1, store=store))} for store in STORES}
    assert set.union(*of.values()) == {fault.name for fault in FAULTS}
    assert set.intersection(*of.values()) >= {"killed", "hung", "hung and killed"}
