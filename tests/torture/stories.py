"""Tortures by name, each drawn from a seed: what a command line asks for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

from tests.mounted.blocks import EXT4, XFS, FileSystem
from tests.torture import filesystem, fio, fsx, power_cut
from tests.torture.report import Report
from tests.torture.setting import Setting

Story = Callable[[Path, Random, int], Report]


def _fsx(place: Path, random: Random, troubles: int) -> Report:
    return fsx.torture(place, Setting.of(random), random, troubles=troubles)


def _fio(place: Path, random: Random, troubles: int) -> Report:
    """With `hold` a run has several troubles and an end, with `fail` one is its end."""
    setting = Setting.of(random)
    runs = troubles if setting.policy == "fail" else -(-troubles // (fio.FAULTS_OF_A_RUN + 1))
    return fio.torture(place, setting, random, runs=runs)


def _on(system: FileSystem) -> Story:
    def story(place: Path, random: Random, troubles: int) -> Report:
        setting = replace(Setting.of(random), size_bytes=system.disk_bytes)
        return filesystem.torture(place, setting, system, random, troubles=troubles)

    return story


def _power(place: Path, random: Random, troubles: int) -> Report:
    return power_cut.torture(place, random, troubles=troubles)


STORIES: dict[str, Story] = {"fsx": _fsx, "fio": _fio, "ext4": _on(EXT4), "xfs": _on(XFS), "power": _power}
