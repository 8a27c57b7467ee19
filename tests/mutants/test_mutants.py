"""Each deliberate bug of the list is killed by the test that is named for it, which passes without it.

The list cannot rot: a text that is no more in the source, or not only once, and a test that is no more, fail here.
"""

import ast
from pathlib import Path

import pytest

from tests.mutants.arena import Arena, Mutant, MutantError, mutated, source_of
from tests.mutants.command import main
from tests.mutants.mutants import MUTANTS

LIMIT_S = 120
AT_LEAST = 30
ALLOCATOR = "ploopfs/image/allocator.py"
A_TEST = "tests/image/test_allocator.py::test_an_entry_twice_in_the_map_is_one_taken_cluster"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena(tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_deliberate_bug_is_killed_by_the_test_that_is_named_for_it(arena: Arena, mutant: Mutant) -> None:
    verdict = arena.meet(mutant, [mutant.killed_by], limit_s=LIMIT_S)
    assert verdict.is_killed, f"{verdict}\n{verdict.text}"


def test_without_a_bug_the_same_tests_pass(arena: Arena) -> None:
    tests = sorted({mutant.killed_by for mutant in MUTANTS})
    verdict = arena.meet(None, tests, limit_s=LIMIT_S)
    assert (verdict.exit_code, verdict.failed, verdict.broken) == (0, (), ""), verdict.text
    assert verdict.passed >= len(tests)


def test_the_list_is_long_and_names_each_bug_once_and_reaches_every_part_of_the_core() -> None:
    assert len(MUTANTS) >= AT_LEAST
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    parts = {"image", "engine", "device", "scst", "sysfs", "fuse"}
    assert parts <= {Path(mutant.file).parent.name for mutant in MUTANTS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_is_a_change_of_the_program_and_not_of_its_words(mutant: Mutant) -> None:
    before, after = (ast.dump(ast.parse(text)) for text in (source_of(mutant), mutated(mutant, source_of(mutant))))
    assert before != after


def bug(old: str, new: str, file: str = ALLOCATOR) -> Mutant:
    return Mutant("a bug", file, old, new, A_TEST)


class TestTheArena:
    """It must not call killed what nobody has seen."""

    def test_a_bug_that_no_test_sees_survives(self, arena: Arena) -> None:
        verdict = arena.meet(bug("self._next = end", "self._next = end + 0"), [A_TEST], limit_s=LIMIT_S)
        assert (verdict.exit_code, verdict.passed, verdict.is_killed) == (0, 1, False)

    @pytest.mark.parametrize("new", ["ennd", "end.nothing", "end + 'x'", "end; import ploopfs.nothing"])
    def test_a_bug_that_breaks_the_source_itself_is_not_killed(self, arena: Arena, new: str) -> None:
        verdict = arena.meet(bug("self._next = end", f"self._next = {new}"), [A_TEST], limit_s=LIMIT_S)
        assert verdict.exit_code == pytest.ExitCode.TESTS_FAILED
        assert verdict.broken
        assert not verdict.is_killed

    def test_a_test_that_is_not_there_kills_nothing(self, arena: Arena) -> None:
        verdict = arena.meet(MUTANTS[0], ["tests/image/test_allocator.py::test_that_nobody_wrote"], limit_s=LIMIT_S)
        assert verdict.exit_code == pytest.ExitCode.USAGE_ERROR
        assert not verdict.is_killed

    def test_a_test_that_never_sees_the_bug_is_noticed(self, arena: Arena) -> None:
        elsewhere = bug("Values that SCST", "Values of SCST", "ploopfs/scst/settings.py")
        verdict = arena.meet(elsewhere, [A_TEST], limit_s=LIMIT_S)
        assert "never import" in verdict.broken

    def test_who_hangs_is_ended_and_has_killed_nothing(self, arena: Arena) -> None:
        verdict = arena.meet(bug("self._next = end", "while True: pass"), [A_TEST], limit_s=2)
        assert (verdict.exit_code, verdict.is_killed) == (None, False)

    def test_a_text_that_is_not_there_or_not_only_once_is_refused(self) -> None:
        for old, count in (("nobody wrote this", 0), ("self._next = end", 1), ("self._limit", 6)):
            mutant = bug(old, "")
            assert source_of(mutant).count(old) == count
            if count != 1:
                with pytest.raises(MutantError, match=f"stands {count} times in ploopfs/image/allocator.py"):
                    mutated(mutant, source_of(mutant))


def test_the_command_lists_the_bugs_and_says_which_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{mutant.name}\t{mutant.file}" for mutant in MUTANTS]
    with pytest.raises(SystemExit):
        main(["no such bug"])
    assert "there is no bug 'no such bug'" in capsys.readouterr().err


def test_the_command_says_what_was_killed(capsys: pytest.CaptureFixture[str]) -> None:
    mutant = MUTANTS[0]
    assert main([mutant.name]) == 0
    assert capsys.readouterr().out.splitlines() == [f"killed    {mutant.name}", "1 of 1 bugs were killed"]
