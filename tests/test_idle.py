"""What is said of a machine's idle CPUs."""

from pathlib import Path

import pytest

from tests.idle import halt_poll_us


@pytest.mark.parametrize(
    ("driver", "setting", "said"),
    [
        ("haltpoll\n", "200000\n", 200),
        ("haltpoll\n", "0\n", 0),
        ("haltpoll\n", None, None),
        ("intel_idle\n", "200000\n", None),
        (None, "200000\n", None),
    ],
)
def test_it_is_known_how_long_an_idle_cpu_looks_for_work(
    tmp_path: Path, driver: str | None, setting: str | None, said: int | None
) -> None:
    paths = tmp_path / "current_driver", tmp_path / "guest_halt_poll_ns"
    for path, text in zip(paths, (driver, setting), strict=True):
        if text is not None:
            path.write_text(text)
    assert halt_poll_us(*paths) == said
