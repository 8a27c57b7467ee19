"""The README says what is there: its table of the specification names tests that exist, its tables are complete."""

import ast
import re
from pathlib import Path

from ploopfs.bounds import all_bounds
from ploopfs.cli.exits import MEANING
from ploopfs.config.schema import FLAVOURS
from ploopfs.sysfs.agent import AGENT
from ploopfs.sysfs.control import CONTROL
from tests.test_cli import VERBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPECIFICATION = README.split("## The specification, sentence by sentence")[1].split("\n## ")[0]
SENTENCES = 18
"""Of the specification, as the table counts them."""


def rows(section: str) -> list[list[str]]:
    """The cells of the rows of a table, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_sentence_of_the_specification_names_tests_that_exist() -> None:
    table = rows(SPECIFICATION)
    assert len(table) == SENTENCES
    for sentence, here, shown_by in table:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown_by)
        assert named, f"no test shows: {sentence}"
        assert here, f"nothing is said to: {sentence}"
        assert shown_by.count("`") == 2 * len(named), f"not a test: {shown_by}"
        assert not [f"{path}::{name}" for path, name in named if name not in names_in(path)]


def test_every_verb_and_every_exit_code_is_explained() -> None:
    commands = README.split("## The command")[1].split("\n## ")[0]
    assert [verb for verb in VERBS if not re.search(rf"`{verb}[ `]", commands)] == []
    assert [code.value for code in MEANING if not re.search(rf"^\| .*\b{code.value}\b", commands, re.MULTILINE)] == []


def test_every_file_of_a_device_in_ploopfs_is_explained() -> None:
    files = README.split("What each device has in `ploopfs/`:")[1].split("\n## ")[0]
    assert [row.name for row in (*CONTROL, *AGENT) if f"`{row.name}`" not in files] == []


def test_every_configuration_that_is_shipped_is_mentioned_and_every_flavour() -> None:
    shipped = {path.name for path in (ROOT / "config").glob("*.yaml")}
    assert set(re.findall(r"config/(\w+\.yaml)", README)) == shipped
    assert [name for name in FLAVOURS if f"`{name}`" not in README] == []
    assert [path.stem for path in (ROOT / "config/scenarios").glob("*.yaml") if path.stem not in README] == []


def test_every_link_within_the_readme_leads_to_a_heading() -> None:
    heads = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
    assert [target for target in re.findall(r"\]\(#([^)]*)\)", README) if target not in anchors] == []


def test_every_bound_is_in_the_table_of_limits_as_it_is() -> None:
    limits = README.split("\n## Limits\n")[1].split("\n## ")[0]
    expected = [
        [bound.of, f"{bound:d}", f"`{bound.setting}`, up to {bound.highest}" if bound.setting else "", bound.reached]
        for bound in all_bounds().values()
    ]
    assert rows(limits) == expected


def test_every_tool_is_mentioned() -> None:
    tools = {path.name for path in (ROOT / "tools").iterdir() if not path.suffix and path.is_file()}
    assert [tool for tool in sorted(tools) if f"tools/{tool}" not in README] == []
