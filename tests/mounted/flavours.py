"""A device of either flavour on a mount: what its names are, what its failing requests answer, how it recovers.

A test that takes a `Kind` holds for both flavours; a row of KINDS is all that a flavour adds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mounted.daemon import Daemon, device


@dataclass(frozen=True, slots=True)
class Served:
    """One device of a running daemon. Names of attributes are counted from its directory."""

    daemon: Daemon
    name: str

    @property
    def disk(self) -> Path:
        return self.daemon.disk(self.name)

    def attribute(self, name: str) -> Path:
        return self.daemon.attribute(name, self.name)

    def value(self, name: str) -> str:
        return self.daemon.value(name, self.name)

    def store(self, name: str, text: str) -> None:
        self.daemon.store(name, text, self.name)


Recover = Callable[[Served, Path], None]
"""Brings a device back on the image that lies at a path."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`answers` gives the errno that the failing read or write itself gets for one of the storage, `fsync_answers` the
    failing fsync; the same, where it is not named. `recoveries` are the ways back."""

    flavour: str
    device: str
    answers: dict[str, str]
    fsync_answers: dict[str, str]
    recoveries: tuple[Recover, ...]

    def configured(self, image: Path | str | Sequence[Path | str], **others: object) -> dict[str, object]:
        return device(image, self.device, flavour=self.flavour, **others)

    def of(self, daemon: Daemon) -> Served:
        return Served(daemon, self.device)

    def answer(self, storage_errno: str) -> str:
        return self.answers.get(storage_errno, storage_errno)

    def answer_to_fsync(self, storage_errno: str) -> str:
        return self.fsync_answers.get(storage_errno, storage_errno)


def reopened(served: Served, _top: Path) -> None:
    served.store("ploopfs/reopen", "1")


def replaced(served: Served, top: Path) -> None:
    served.store("ploopfs/replace_delta", str(top))


def reloaded(served: Served, top: Path) -> None:
    """What dmsetup's suspend, reload and resume do. If one of them fails, no table waits any more, and requests
    are let through again."""
    images, _, _old_top = served.value("ploopfs/table").rpartition(" ")
    served.store("ploopfs/suspend", "noflush nolockfs")
    try:
        served.store("ploopfs/load", f"{images} {top}")
        served.store("ploopfs/resume", "noflush nolockfs")
    except OSError:
        served.store("ploopfs/clear", "1")
        served.store("ploopfs/resume", "noflush nolockfs")
        raise


VZ7 = Kind(
    flavour="vz7",
    device="ploop0",
    answers={},
    fsync_answers=dict.fromkeys(("EBUSY", "ENOTCONN", "ENOSPC"), "EIO"),
    recoveries=(reopened, replaced),
)
VZ9 = Kind(
    flavour="vz9",
    device="dm-0",
    answers={"ENOTCONN": "EIO", "EROFS": "EIO"},
    fsync_answers={"ENOTCONN": "EIO"},
    recoveries=(reopened, replaced, reloaded),
)

KINDS = (VZ7, VZ9)


def name_of(value: object) -> str | None:
    """The id of a parametrized test."""
    return value.flavour if isinstance(value, Kind) else getattr(value, "__name__", None)
