"""Style that matters is a test: directions of imports, what a part must not know, sizes, words that must not stay.

Each rule is a function from a path and a text to complaints, `path:line: what is wrong`. It runs over the repository,
and over deliberate violations: a rule that cannot complain proves nothing. Knows the sources as text, imports none.
"""

import ast
import builtins
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from shutil import which

import pytest

ROOT = Path(__file__).resolve().parent.parent
Rule = Callable[[str, str], Iterator[str]]

ORDER = ("errors", "bounds", "image", "engine", "device", "scst", "sysfs", "fuse", "cli")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    **{part: ORDER[: place + 1] for place, part in enumerate(ORDER)},
    # Another front beside fuse: neither knows the other.
    "blockfuse": (*ORDER[: ORDER.index("fuse")], "blockfuse"),
    "cli": (*ORDER, "blockfuse", "config"),
    "__main__": ("cli",),
    "config": (*ORDER[: ORDER.index("fuse")], "config"),
    "testing": (*ORDER[: ORDER.index("device") + 1], "testing"),
    # `ploopfs/__init__.py` holds the version, which anybody may read because it imports nobody.
    "": (),
}

NOT_IN_IMAGE = {"trio", "os", "logging", "io", "asyncio", "pathlib"}

OS_ERRORS = {name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, OSError)}
KNOWS_NO_OS = {"device", "scst", "sysfs"}
ASKS_THE_KERNEL_NOTHING = re.compile(r"os\.(?:O_[A-Z]+|major|minor|makedev)")
"""What device, scst and sysfs may use of os: constants of open(2), arithmetic on device numbers. Neither can fail."""

MAY_SKIP = {"tests/realparts.py", "tests/test_conftest.py"}

MODULE_LINES = 400
FUNCTION_LINES = 60
PACKAGE_MODULES = 3
TEXT_LIMIT_BYTES = 1 << 20
"""A larger file is no text of ours but an image that somebody left in the checkout."""

TOP_LEVEL = {"pyproject.toml", "ploopfs", "config", "tests", "tools", "README.md", "CHANGELOG.md", "LICENSE"}

# Both are put together here so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.}~-])/(?:" + "|".join(("work", "root")) + ")/")
UNFINISHED = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")


# What a source says.


@cache
def tree_of(source: str) -> ast.Module:
    return ast.parse(source)


def part_of(path: str) -> str:
    """The part of ploopfs that a module belongs to: its package or top-level module, "" for ploopfs itself."""
    top = PurePosixPath(path).parts[1]
    return "" if top == "__init__.py" else top.removesuffix(".py")


def imports(path: str, source: str) -> Iterator[tuple[int, str]]:
    """Every import, in functions and under TYPE_CHECKING too: its line, and `module` or `module.name`, absolute."""
    package = PurePosixPath(path).parent.parts
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree_of(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def names_by_origin(source: str) -> Iterator[tuple[int, str]]:
    """Every dotted name that a source uses, aliases of imports undone: after `import time as t`, t.nap is time.nap."""
    origins: dict[str, str] = {}
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            origins.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            origins.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Name | ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            yield node.lineno, origins.get(first, first) + dot + rest


# Rules for the modules of ploopfs.


def imports_point_one_way(path: str, source: str) -> Iterator[str]:
    part = part_of(path)
    if part not in MAY_IMPORT:
        yield f"{path}:1: {part} has no place in the order of imports"
        return
    for line, name in imports(path, source):
        package, _, rest = name.partition(".")
        imported = rest.partition(".")[0]
        of_ploopfs_itself = not imported or imported.startswith("__")
        if package == "ploopfs" and not of_ploopfs_itself and imported not in MAY_IMPORT[part]:
            yield f"{path}:{line}: {part or 'ploopfs'} must not import {imported}"


def only_fuse_imports_pyfuse3(path: str, source: str) -> Iterator[str]:
    for line, name in imports(path, source):
        if name.split(".")[0] == "pyfuse3" and part_of(path) != "fuse":
            yield f"{path}:{line}: pyfuse3 outside fuse"


def image_is_pure(path: str, source: str) -> Iterator[str]:
    for line, name in imports(path, source):
        if part_of(path) == "image" and name.split(".")[0] in NOT_IN_IMAGE:
            yield f"{path}:{line}: image must not import {name.split('.')[0]}"


def os_errors_end_in_the_engine(path: str, source: str) -> Iterator[str]:
    """A bare OSError above the engine could pass for an answer of the storage: nothing there names or raises one."""
    if part_of(path) not in KNOWS_NO_OS:
        return
    for line, name in names_by_origin(source):
        of_os = re.match(r"os\.\w+", name)
        if name in OS_ERRORS:
            yield f"{path}:{line}: {name} above the engine"
        elif of_os and not ASKS_THE_KERNEL_NOTHING.fullmatch(of_os[0]):
            yield f"{path}:{line}: {of_os[0]} above the engine"


def a_module_says_what_it_is(path: str, source: str) -> Iterator[str]:
    if not ast.get_docstring(tree_of(source)):
        yield f"{path}:1: no docstring"


def a_function_says_what_it_returns(path: str, source: str) -> Iterator[str]:
    for function in functions(source):
        if function.returns is None:
            yield f"{path}:{function.lineno}: {function.name} has no return annotation"


def only_the_command_line_prints(path: str, source: str) -> Iterator[str]:
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Name) and node.id == "print" and part_of(path) != "cli":
            yield f"{path}:{node.lineno}: print outside cli"


def modules_are_short(path: str, source: str) -> Iterator[str]:
    lines = len(source.splitlines())
    if lines > MODULE_LINES:
        yield f"{path}:1: {lines} lines, more than {MODULE_LINES}"


def functions_are_short(path: str, source: str) -> Iterator[str]:
    for function in functions(source):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > FUNCTION_LINES:
            yield f"{path}:{function.lineno}: {function.name} has {lines} lines, more than {FUNCTION_LINES}"


# Rules for the modules of the tests.


def a_test_does_not_sleep(path: str, source: str) -> Iterator[str]:
    """A sleep is a guess at how long something takes; trio.sleep_forever, which waits for nothing, is none."""
    for line, name in names_by_origin(source):
        if name in {f"{module}.sleep" for module in ("time", "trio", "asyncio")} | {"trio.sleep_until"}:
            yield f"{path}:{line}: {name} in a test"


def a_clock_is_an_argument(path: str, source: str) -> Iterator[str]:
    """pytest-trio looks for the clock among a test's arguments: with usefixtures the test runs in real time."""
    for call in ast.walk(tree_of(source)):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("usefixtures"):
            for argument in call.args:
                if ast.unparse(argument) in ("'autojump_clock'", "'mock_clock'"):
                    yield f"{path}:{call.lineno}: usefixtures({ast.unparse(argument)}) gives a test no clock"


def only_real_parts_skip(path: str, source: str) -> Iterator[str]:
    """Other ways to skip would pass in CI, where a lack must fail."""
    for line, name in names_by_origin(source):
        ways = {"pytest.skip", "pytest.importorskip", "pytest.mark.skip", "pytest.mark.skipif"}
        if name in ways and path not in MAY_SKIP:
            yield f"{path}:{line}: {name}; say need() or real_or_skip() of tests.realparts"


# Rules for every text of the repository, and for the list of its files.


def no_path_of_one_machine(path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if MACHINE_PATH.search(line):
            yield f"{path}:{number}: a path of one machine: {line.strip()}"


def nothing_is_marked_unfinished(path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if UNFINISHED.search(line):
            yield f"{path}:{number}: marked unfinished: {line.strip()}"


def top_level_is_as_designed(paths: Iterable[str]) -> Iterator[str]:
    for top in sorted({PurePosixPath(path).parts[0] for path in paths}):
        if top not in TOP_LEVEL and not top.startswith("."):
            yield f"{top}: nothing of this name belongs at the top level"


def packages_are_worth_a_directory(paths: Iterable[str]) -> Iterator[str]:
    """Where a package would hold fewer than three modules, it is one module."""
    sizes: dict[PurePosixPath, int] = {}
    for path in map(PurePosixPath, paths):
        if path.suffix == ".py" and path.parts[0] == "ploopfs":
            sizes[path.parent] = sizes.get(path.parent, 0) + (path.name != "__init__.py")
    for package, modules in sizes.items():
        if modules < PACKAGE_MODULES and len(package.parts) > 1:
            yield f"{package}: {modules} modules: make it one module"


OF_PLOOPFS: tuple[Rule, ...] = (
    imports_point_one_way,
    only_fuse_imports_pyfuse3,
    image_is_pure,
    os_errors_end_in_the_engine,
    a_module_says_what_it_is,
    a_function_says_what_it_returns,
    only_the_command_line_prints,
    modules_are_short,
    functions_are_short,
)
OF_TESTS: tuple[Rule, ...] = (a_test_does_not_sleep, a_clock_is_an_argument, only_real_parts_skip)
OF_EVERY_TEXT: tuple[Rule, ...] = (no_path_of_one_machine, nothing_is_marked_unfinished)


# The repository keeps the rules.


@cache
def listed() -> list[str]:
    """Every file of the repository; what git ignores is not of the repository."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False) if which("git") else None
    paths = set(found.stdout.split("\0")) - {""} if found else set()
    if "pyproject.toml" not in paths:
        paths = set(_walk())
    return sorted(path for path in paths if (ROOT / path).is_file())


@cache
def repository() -> dict[str, str]:
    """Path and text of every file of the repository that is text."""
    return {path: text for path in listed() if (text := _text(ROOT / path)) is not None}


def _walk() -> Iterator[str]:
    """For an exported tree, which git does not know: every file but those that .gitignore names."""
    made = {".git", ".venv", "__pycache__", "build", "dist"}
    for directory, below, files in os.walk(ROOT):
        below[:] = [name for name in below if name not in made and not name.endswith(("_cache", ".egg-info"))]
        yield from ((Path(directory) / name).relative_to(ROOT).as_posix() for name in files)


def _text(path: Path) -> str | None:
    """None for an image."""
    if path.stat().st_size > TEXT_LIMIT_BYTES:
        return None
    content = path.read_bytes()
    return None if b"\0" in content else content.decode(errors="replace")


def modules_below(top: str) -> list[str]:
    return [path for path in repository() if path.startswith(f"{top}/") and path.endswith(".py")]


def assert_kept(rule: Rule, paths: Iterable[str]) -> None:
    assert_none(complaint for path in paths for complaint in rule(path, repository()[path]))


def assert_none(complaints: Iterable[str]) -> None:
    """Fails with every complaint on its own line, where an editor finds its way to it."""
    found = list(complaints)
    assert not found, "\n".join(found)


def name_of(value: object) -> str:
    """The id of a parametrized test: a rule by its name."""
    return getattr(value, "__name__", "")


def test_the_repository_is_read() -> None:
    assert {"pyproject.toml", "ploopfs/errors.py", "tests/test_tidy.py", "tools/setup"} <= set(repository())


@pytest.mark.parametrize("rule", OF_PLOOPFS, ids=name_of)
def test_every_module_keeps_the_rule(rule: Rule) -> None:
    assert_kept(rule, modules_below("ploopfs"))


@pytest.mark.parametrize("rule", OF_TESTS, ids=name_of)
def test_every_test_keeps_the_rule(rule: Rule) -> None:
    assert_kept(rule, modules_below("tests"))


@pytest.mark.parametrize("rule", OF_EVERY_TEXT, ids=name_of)
def test_every_text_keeps_the_rule(rule: Rule) -> None:
    assert_kept(rule, repository())


def test_nothing_lies_about_at_the_top_level() -> None:
    assert_none(top_level_is_as_designed(listed()))


def test_every_package_is_worth_a_directory() -> None:
    assert_none(packages_are_worth_a_directory(repository()))


# Each rule sees what it is there to see, and lets pass what is right.

CORE = "ploopfs/__init__.py"
ERRORS = "ploopfs/errors.py"
IMAGE = "ploopfs/image/bat.py"
ENGINE = "ploopfs/engine/file.py"
DEVICE = "ploopfs/device/queue.py"
SCST = "ploopfs/scst.py"
FUSE = "ploopfs/fuse/mount.py"
CLI = "ploopfs/cli/main.py"
FAKE = "ploopfs/testing/faulty.py"
TEST = "tests/test_x.py"

WRONG: tuple[tuple[Rule, str, str, str], ...] = (
    (imports_point_one_way, IMAGE, "from ploopfs.engine import file", ":1: image must not import engine"),
    (imports_point_one_way, IMAGE, "import ploopfs.device.queue", ":1: image must not import device"),
    (imports_point_one_way, IMAGE, "from ploopfs import errors, cli", ":1: image must not import cli"),
    (imports_point_one_way, IMAGE, "from ..engine import file", ":1: image must not import engine"),
    (imports_point_one_way, IMAGE, "from .. import engine", ":1: image must not import engine"),
    (imports_point_one_way, "ploopfs/image/__init__.py", "from ..cli import main", ":1: image must not import cli"),
    (imports_point_one_way, IMAGE, "def f():\n    import ploopfs.engine", ":2: image must not import engine"),
    (imports_point_one_way, IMAGE, "if TYPE_CHECKING:\n    import ploopfs.fuse", ":2: image must not import fuse"),
    (imports_point_one_way, ERRORS, "import ploopfs.image", ":1: errors must not import image"),
    (imports_point_one_way, SCST, "import ploopfs.sysfs", ":1: scst must not import sysfs"),
    (imports_point_one_way, FUSE, "import ploopfs.config", ":1: fuse must not import config"),
    (imports_point_one_way, CLI, "import ploopfs.testing", ":1: cli must not import testing"),
    (imports_point_one_way, FAKE, "import ploopfs.sysfs", ":1: testing must not import sysfs"),
    (imports_point_one_way, CORE, "from .errors import BadImage", ":1: ploopfs must not import errors"),
    (imports_point_one_way, "ploopfs/stray.py", "", ":1: stray has no place in the order of imports"),
    (only_fuse_imports_pyfuse3, CLI, "from pyfuse3 import FUSEError", ":1: pyfuse3 outside fuse"),
    (image_is_pure, IMAGE, "import os.path", ":1: image must not import os"),
    (image_is_pure, IMAGE, "def f():\n    from trio import Lock", ":2: image must not import trio"),
    (os_errors_end_in_the_engine, DEVICE, "import os\nos.stat('x')", ":2: os.stat above the engine"),
    (os_errors_end_in_the_engine, DEVICE, "import os\nos.path.exists('x')", ":2: os.path above the engine"),
    (os_errors_end_in_the_engine, DEVICE, "from os import fstat as f\nf(1)", ":2: os.fstat above the engine"),
    (os_errors_end_in_the_engine, SCST, "x = OSError", ":1: OSError above the engine"),
    (os_errors_end_in_the_engine, "ploopfs/sysfs/nodes.py", "x = 1\nIOError", ":2: IOError above the engine"),
    (os_errors_end_in_the_engine, DEVICE, "try: f()\nexcept PermissionError: ...", ":2: PermissionError above"),
    (a_module_says_what_it_is, DEVICE, "# The queue.\nx = 1", ":1: no docstring"),
    (a_function_says_what_it_returns, DEVICE, "class Q:\n    def __init__(self): ...", ":2: __init__ has no return"),
    (a_function_says_what_it_returns, DEVICE, "async def read(length: int): ...", ":1: read has no return"),
    (only_the_command_line_prints, DEVICE, "def f() -> None:\n    print('x')", ":2: print outside cli"),
    (modules_are_short, DEVICE, "x = 1\n" * 401, ":1: 401 lines, more than 400"),
    (functions_are_short, DEVICE, "def f() -> None:\n" + "    g()\n" * 60, ":1: f has 61 lines, more than 60"),
    (a_test_does_not_sleep, TEST, "import time\ntime.sleep(1)", ":2: time.sleep in a test"),
    (a_test_does_not_sleep, TEST, "import time as t\nt.sleep(1)", ":2: time.sleep in a test"),
    (a_test_does_not_sleep, TEST, "from trio import sleep as nap\nnap(1)", ":2: trio.sleep in a test"),
    (a_test_does_not_sleep, TEST, "nursery.start_soon(trio.sleep, 1)", ":1: trio.sleep in a test"),
    (a_clock_is_an_argument, TEST, "@pytest.mark.usefixtures('mock_clock')\ndef f(): ...", ":1: usefixtures('mock"),
    (only_real_parts_skip, TEST, "@pytest.mark.skipif(True)\ndef f(): ...", ":1: pytest.mark.skipif;"),
    (only_real_parts_skip, TEST, "from pytest import skip\nskip('no')", ":2: pytest.skip;"),
    (no_path_of_one_machine, "README.md", "x\ncd /" + "work/main", ":2: a path of one machine: cd /"),
    (no_path_of_one_machine, "tools/x", "cp a '/" + "root/.cache'", ":1: a path of one machine: cp a"),
    (nothing_is_marked_unfinished, ERRORS, "x = 1  # TO" + "DO: more", ":1: marked unfinished: x = 1"),
    (nothing_is_marked_unfinished, "tools/x", "# X" + "XX", ":1: marked unfinished: #"),
)


@pytest.mark.parametrize(("rule", "path", "source", "complaint"), WRONG, ids=name_of)
def test_a_violation_is_seen_where_it_stands(rule: Rule, path: str, source: str, complaint: str) -> None:
    (only,) = set(rule(path, source))
    assert only.startswith(path + complaint)


RIGHT: tuple[tuple[Rule, str, str], ...] = (
    (imports_point_one_way, DEVICE, "from ploopfs import __version__, errors\nimport ploopfs\nimport trio"),
    (imports_point_one_way, DEVICE, "from ploopfs.engine import file\nfrom . import gate\nfrom .gate import Gate"),
    (imports_point_one_way, CLI, "from ploopfs import config, fuse"),
    (imports_point_one_way, "ploopfs/config.py", "from ploopfs.device import flavour"),
    (imports_point_one_way, FAKE, "import ploopfs.device.queue"),
    (only_fuse_imports_pyfuse3, FUSE, "import pyfuse3"),
    (image_is_pure, IMAGE, "import struct, errno, operator"),
    (image_is_pure, ENGINE, "import os, trio, logging"),
    (os_errors_end_in_the_engine, ENGINE, "import os\nOSError"),
    (os_errors_end_in_the_engine, DEVICE, "'''OSError is a word here.'''\nimport os\nos.O_RDONLY | os.major(5)"),
    (a_module_says_what_it_is, DEVICE, "'''The queue.'''"),
    (a_function_says_what_it_returns, DEVICE, "def f() -> None: ...\ng = lambda x: x"),
    (only_the_command_line_prints, CLI, "print('x')"),
    (modules_are_short, DEVICE, "x = 1\n" * 400),
    (functions_are_short, DEVICE, "def f() -> None:\n" + "    g()\n" * 59),
    (a_test_does_not_sleep, TEST, "import time, trio\ntrio.sleep_forever()\ntime.monotonic()"),
    (a_clock_is_an_argument, TEST, "@pytest.mark.usefixtures('bindfs')\ndef f(autojump_clock): ..."),
    (only_real_parts_skip, TEST, "import pytest\npytest.fail('no')\npytest.mark.real"),
    (only_real_parts_skip, "tests/realparts.py", "import pytest\npytest.skip('no')"),
    (no_path_of_one_machine, "README.md", "MNT/" + "root/x, $disk/" + "work/y, worker/rooted, /" + "workshop"),
    (nothing_is_marked_unfinished, "tools/x", 'mktemp -d "$TMPDIR/x.XXXXXX"; autotodo'),
)


@pytest.mark.parametrize(("rule", "path", "source"), RIGHT, ids=name_of)
def test_what_is_right_passes(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, source)) == []


def test_every_rule_has_a_violation_and_an_innocent() -> None:
    rules = {*OF_PLOOPFS, *OF_TESTS, *OF_EVERY_TEXT}
    assert {rule for rule, *_ in WRONG} == rules
    assert {rule for rule, *_ in RIGHT} == rules


def test_a_stray_file_at_the_top_level_is_seen() -> None:
    assert list(top_level_is_as_designed(["README.md", ".ci/run", "ploopfs/x.py", "notes/a", "notes/b"])) == [
        "notes: nothing of this name belongs at the top level"
    ]


def test_a_package_of_two_modules_is_seen() -> None:
    small = [f"ploopfs/small/{name}.py" for name in ("__init__", "one", "two")]
    large = [f"ploopfs/large/{name}.py" for name in ("__init__", "one", "two", "three")]
    assert list(packages_are_worth_a_directory([*small, *large, "ploopfs/__init__.py", "tests/a/test_b.py"])) == [
        "ploopfs/small: 2 modules: make it one module"
    ]
