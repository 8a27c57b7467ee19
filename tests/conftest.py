"""Rules that hold for every test: an undeclared WARNING fails it, Hypothesis draws the same examples each time, and
programs that are started speak as they do on a machine that nobody has set up for himself."""

import logging
import os
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

# A run that fails must fail again: no clock decides (deadline, too_slow), and the examples are those of the last run.
settings.register_profile(
    "ploopfs", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ploopfs")

# What others print is compared: in English (LANGUAGE counts even where LC_ALL is C.UTF-8), and without colours.
os.environ["LC_ALL"] = "C.UTF-8"
for _name in ("LANGUAGE", "FORCE_COLOR", "POSIXLY_CORRECT"):
    os.environ.pop(_name, None)

# Whoever runs the tests in the background of a shell has them ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, dict[str, object] | None, object]:
    """What a test has said goes from process to process as UTF-8, which names that are no text have no place in."""
    return _as_text((yield))


def _as_text(data: object) -> object:
    match data:
        case str():
            return data.encode(errors="backslashreplace").decode()
        case dict():
            return {_as_text(key): _as_text(value) for key, value in data.items()}
        case list() | tuple():
            return type(data)(map(_as_text, data))
        case _:
            return data


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have counted (`record_property("figures", ...)`) stands at the end of every log."""
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, value in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(f"{report.nodeid}: {value}")


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.levelname} {record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def undeclared_warnings_fail(request: pytest.FixtureRequest) -> Iterator[None]:
    """A record at WARNING or above means trouble: a test in which trouble is expected says so with a mark."""
    recorder = _Recorder()
    logger = logging.getLogger("ploopfs")
    logger.addHandler(recorder)
    yield
    logger.removeHandler(recorder)
    if recorder.messages and request.node.get_closest_marker("expects_warnings") is None:
        logged = "\n".join(recorder.messages)
        pytest.fail(f"logged, and the test is not marked expects_warnings:\n{logged}", pytrace=False)
