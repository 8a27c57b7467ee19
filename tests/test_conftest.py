"""The rules of conftest.py and realparts.py hold: each is broken on purpose, and the break is seen."""

import os
from pathlib import Path

import pytest

from tests.realparts import need, real_or_skip

pytest_plugins = ["pytester"]


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    """A directory of tests of its own, under our conftest."""
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = expects_warnings\n")
    return pytester


LOGGING_TEST = """
import logging, pytest

{mark}
def test_it():
    logging.getLogger("ploopfs.device").{level}("the disk is on fire")
"""


# The inner test logs in this process, so that the outer rule hears it too.
@pytest.mark.expects_warnings
@pytest.mark.parametrize("level", ["warning", "error"])
def test_an_undeclared_warning_fails_the_test_that_logged_it(inner: pytest.Pytester, level: str) -> None:
    inner.makepyfile(LOGGING_TEST.format(mark="", level=level))
    result = inner.runpytest_inprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([f"*{level.upper()} ploopfs.device: the disk is on fire"])
    assert result.ret != 0


@pytest.mark.expects_warnings
def test_a_declared_warning_passes(inner: pytest.Pytester) -> None:
    inner.makepyfile(LOGGING_TEST.format(mark="@pytest.mark.expects_warnings", level="warning"))
    inner.runpytest_inprocess().assert_outcomes(passed=1)


def test_an_info_record_needs_no_declaration(inner: pytest.Pytester) -> None:
    inner.makepyfile(LOGGING_TEST.format(mark="", level="info"))
    inner.runpytest_inprocess().assert_outcomes(passed=1)


def test_what_is_no_text_may_be_said_in_a_test_of_another_process(inner: pytest.Pytester) -> None:
    inner.makepyfile('import logging\ndef test_it():\n    logging.error("\\udc80")\n    assert "\\udc81" == 1')
    inner.runpytest_subprocess("--numprocesses", "1").assert_outcomes(failed=1)


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLOOPFS_REQUIRE_REAL", raising=False)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLOOPFS_REQUIRE_REAL", "1")


@pytest.mark.usefixtures("lenient")
def test_a_missing_program_skips_and_is_named() -> None:
    with pytest.raises(pytest.skip.Exception, match="lacks the program no-such-program, the program nor-this"):
        need(commands=("python3", "no-such-program", "nor-this"))


@pytest.mark.usefixtures("lenient")
def test_a_missing_file_skips_and_is_named() -> None:
    need(files=("/pro*/self/status",))
    with pytest.raises(pytest.skip.Exception, match=r"lacks a file /proc/self/\*\.so$"):
        need(files=("/proc/self/*.so",))


@pytest.mark.usefixtures("strict")
def test_without_io_uring_its_tests_are_skipped_even_where_parts_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.realparts._gives_rings", lambda: False)
    need()
    with pytest.raises(pytest.skip.Exception, match="gives no io_uring"):
        need(io_uring=True)


@pytest.mark.usefixtures("strict")
def test_a_missing_program_fails_where_the_real_parts_are_required() -> None:
    with pytest.raises(pytest.fail.Exception, match="lacks the program no-such-program"):
        need(commands=("no-such-program",))


@pytest.mark.usefixtures("strict")
def test_a_reason_of_the_test_itself_fails_where_the_real_parts_are_required() -> None:
    with pytest.raises(pytest.fail.Exception, match="this QEMU cannot"):
        real_or_skip("this QEMU cannot")


@pytest.mark.usefixtures("lenient")
def test_device_nodes_that_do_not_open_and_missing_rights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.realparts._opens", lambda _path: False)
    monkeypatch.setattr("tests.realparts._may_mount", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(pytest.skip.Exception, match=r"root, /dev/fuse, .*/dev/loop-control, .*loop devices"):
        need(fuse=True, loop=True, root=True)


@pytest.mark.usefixtures("strict")
def test_what_the_machine_has_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.realparts._opens", lambda _path: True)
    monkeypatch.setattr("tests.realparts._may_mount", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    need(commands=("python3",), fuse=True, loop=True, root=True)
