"""Where a deliberate bug meets the tests that must see it: a copy of the product with the bug in it, and pytest.

Knows no bug. Invariants. Each bug has a process and a copy of its own, and the sources of the repository are only read.
A bug that breaks the product in such a way that nothing runs at all (a name that is not there, a module that cannot be
imported) is found by any test, and so proves nothing: it is no bug that counts as killed.
"""

import compileall
import contextlib
import itertools
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PRODUCT = "ploopfs"
_PRELOADED = ["hypothesis", "hypothesis.stateful", "numpy", "pytest", "trio", "trio.testing", "yaml"]
"""What takes long to import, and is no part of the product: each process begins with it."""
_PATIENCE_S = 15
"""Most of these tests fail, and many by waiting: for as long as a slow machine may take, and no longer."""
_NOT_OF_THE_PARENT = ("PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID", "PYTEST_ADDOPTS")
# What failed is all that counts. Beside it pytest explains a comparison that failed, and where CI is set it does so in
# full: of two disks that takes minutes.
_QUIETLY = ("-q", "-p", "no:cacheprovider", "--assert=plain")
_NEVER_RIGHT = (AttributeError, ImportError, NameError, SyntaxError, TypeError)


@dataclass(frozen=True, slots=True)
class Mutant:
    """`name` says what is broken: `old`, which stands once in `file` of the product, becomes `new`. Then the test
    `killed_by` (a node id of pytest) fails, for one of its parameters at least."""

    name: str
    file: str
    old: str
    new: str
    killed_by: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What pytest said: its exit code, which tests failed, how many passed, and the end of what it printed.

    `broken`: a failure says that the source is none, not that it is wrong. `exit_code` is None if time ran out."""

    exit_code: int | None
    failed: tuple[str, ...] = ()
    passed: int = 0
    broken: str = ""
    text: str = ""

    @property
    def is_killed(self) -> bool:
        return self.exit_code == pytest.ExitCode.TESTS_FAILED and bool(self.failed) and not self.broken


class MutantError(Exception):
    """The mutant does not fit to the source any more."""


def source_of(mutant: Mutant) -> str:
    return (ROOT / mutant.file).read_text(encoding="utf-8")


def mutated(mutant: Mutant, source: str) -> str:
    """The text of its file with the bug. Raises MutantError."""
    count = source.count(mutant.old)
    if count != 1:
        raise MutantError(f"{mutant.name}: the old text stands {count} times in {mutant.file}, expected once")
    text = source.replace(mutant.old, mutant.new)
    compile(text, mutant.file, "exec")
    return text


class Arena:
    """`directory` is for the copies, one bug at a time in each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = itertools.count()
        self._lock = threading.Lock()
        self._compiled: Path | None = None
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(_PRELOADED)

    def meet(
        self, mutant: Mutant | None, tests: Sequence[str], *, limit_s: float, options: Sequence[str] = ("-x",)
    ) -> Verdict:
        """What these tests say of a bug; of the product as it is without one."""
        with self._copy(f"{next(self._count):04}", mutant) as copy:
            output = copy / "output"
            here, there = self._processes.Pipe(duplex=False)
            arguments = [*tests, *options, *_QUIETLY, "-o", f"pythonpath={copy} {ROOT}"]
            process = self._processes.Process(
                target=_run, args=(there, str(copy), mutant.file if mutant else None, arguments, str(output))
            )
            process.start()
            there.close()
            try:
                verdict = here.recv() if here.poll(limit_s) else None
            except EOFError:
                verdict = Verdict(-1)
            finally:
                here.close()
                if verdict is None:
                    process.kill()
                process.join()
            text = output.read_text(encoding="utf-8", errors="replace")[-4000:] if output.exists() else ""
            if not isinstance(verdict, Verdict):
                return Verdict(None, text=text)
            return Verdict(verdict.exit_code, verdict.failed, verdict.passed, verdict.broken, text)

    def _original(self) -> Path:
        with self._lock:
            if self._compiled is None:
                original = self._directory / "original"
                shutil.copytree(ROOT / PRODUCT, original, ignore=shutil.ignore_patterns("__pycache__"))
                compileall.compile_dir(original, quiet=1)
                self._compiled = original
        return self._compiled

    @contextlib.contextmanager
    def _copy(self, name: str, mutant: Mutant | None) -> Iterator[Path]:
        copy = self._directory / name
        # With what is compiled once: it is valid for a source of the same time.
        shutil.copytree(self._original(), copy / PRODUCT)
        try:
            if mutant is not None:
                path = copy / mutant.file
                path.write_text(mutated(mutant, source_of(mutant)), encoding="utf-8")
                # The time of a compiled source is in whole seconds, and its length may be the same.
                for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
                    compiled.unlink()
            yield copy
        finally:
            shutil.rmtree(copy)


@dataclass(eq=False, slots=True)
class _Recorder:
    """A plugin of pytest."""

    failed: list[str] = field(default_factory=list)
    passed: int = 0
    broken: str = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)
        self.passed += report.when == "call" and report.passed

    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        if call.excinfo is not None and (wrong := _never_right(call.excinfo.value)) is not None:
            self.broken = repr(wrong)


def _never_right(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_never_right, error.exceptions)), None)
    return error if isinstance(error, _NEVER_RIGHT) else None


def _run(answer: Connection, copy: str, file: str | None, arguments: list[str], output: str) -> None:
    """In a process that has nothing of the product yet."""
    assert PRODUCT not in sys.modules
    for name in _NOT_OF_THE_PARENT:
        os.environ.pop(name, None)
    os.environ["PLOOPFS_TEST_PATIENCE_S"] = str(_PATIENCE_S)
    with open(output, "wb") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    os.chdir(ROOT)
    recorder = _Recorder()
    exit_code = int(pytest.main(arguments, plugins=[recorder]))
    sys.stdout.flush()
    product = sys.modules.get(PRODUCT)
    if product is None or not str(product.__file__).startswith(copy):
        recorder.broken = f"the tests saw {product}, not the copy in {copy}"
    elif file is not None and file.removesuffix(".py").replace("/", ".") not in sys.modules:
        recorder.broken = f"the tests never import {file}"
    answer.send(Verdict(exit_code, tuple(recorder.failed), recorder.passed, recorder.broken))


def each(
    arena: Arena, mutants: Sequence[Mutant], tests: Sequence[str] | None, *, limit_s: float, jobs: int
) -> Iterator[tuple[Mutant, Verdict]]:
    """In their order, `jobs` at a time; `tests` None: each meets the one that must kill it."""
    options = ("-x",) if tests is None else ()

    def met(mutant: Mutant) -> Verdict:
        return arena.meet(mutant, tests or [mutant.killed_by], limit_s=limit_s, options=options)

    with ThreadPoolExecutor(jobs) as threads:
        yield from zip(mutants, threads.map(met, mutants), strict=True)
