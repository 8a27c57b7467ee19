"""The verb: a scenario file in, a report and an exit code out."""

import argparse
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import ploopfs.cli.serve  # noqa: F401 -- with it come all who declare events
from ploopfs.cli.exits import Exit
from ploopfs.cli.rehearse.play import Player
from ploopfs.cli.rehearse.report import Teller, as_json, junit, summary
from ploopfs.cli.rehearse.stage import existing_stage, own_stage
from ploopfs.config.scenario import AnyStep, ExpectEvent, Load, Request, Scenario
from ploopfs.config.scenario_file import load_scenario
from ploopfs.device.events import EVENTS
from ploopfs.errors import BadValue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the scenario, such as config/scenarios/lease-stolen.yaml")
    parser.add_argument("--command", metavar="CMD", default="", help="your own recovery, in place of the scenario's")
    parser.add_argument("--junit", metavar="OUT.xml", help="write the report as JUnit XML as well")
    parser.add_argument(
        "--mount", metavar="MNT", help="on the devices of this mount; default: scratch images, mounted for the purpose"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="with --mount: the scenario may write to these disks, at random"
    )
    parser.add_argument("--keep", action="store_true", help="leave the scratch directory and its mount behind")


def run(arguments: argparse.Namespace) -> int:
    scenario = load_scenario(arguments.file)
    _check_events(arguments.file, scenario)
    # Whoever ends it (timeout(1), a build service) is to find nothing left behind either.
    signal.signal(signal.SIGTERM, _interrupt)
    if arguments.mount is None:
        stage_of = own_stage(scenario, keep=arguments.keep)
    else:
        _check_harmless(scenario, arguments)
        stage_of = existing_stage(scenario, arguments.mount)
    teller = Teller(quiet=arguments.json)
    with _reported(arguments.junit), stage_of as stage:
        teller.title(scenario.name, scenario.about)
        player = Player(scenario, stage, teller, recovery=arguments.command)
        passed = player.play()
        if arguments.junit:
            xml = junit(scenario.name, scenario.path, player.results, player.events)
            Path(arguments.junit).write_bytes(xml)
        if arguments.json:
            report = as_json(scenario.name, scenario.path, player.results, player.events)
            print(json.dumps(report | ({"kept": stage.scratch} if arguments.keep else {}), indent=2))
        teller.say(f"{scenario.name}: {summary(player.results)}")
        if arguments.keep and stage.is_own:
            mountpoint = stage.tree.mountpoint
            teller.say(f"kept: {stage.scratch}; to clean up: ploopfs umount {mountpoint}; rm -r {stage.scratch}")
    return Exit.OK if passed else Exit.UNMET


@contextmanager
def _reported(junit_path: str | None) -> Iterator[None]:
    """It is no use to find out at the end that the report cannot be written; and a report of a rehearsal that was ended
    before is none: an empty file would pass for one."""
    path = Path(junit_path) if junit_path else None
    was_there = path is None or path.exists()
    if path is not None:
        path.open("ab").close()
    try:
        yield
    finally:
        if path is not None and not was_there and path.exists() and not path.stat().st_size:
            path.unlink()


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def _check_events(file: str, scenario: Scenario) -> None:
    """A name that no daemon tells would be waited for in vain, after everything before it was played."""
    for step in scenario.steps:
        if isinstance(step, ExpectEvent) and step.event not in EVENTS:
            near = get_close_matches(step.event, EVENTS, n=3) or sorted(EVENTS)
            raise BadValue(f"{file}:{step.line}: expect.event is {step.event!r}, expected an event: {', '.join(near)}")


def _check_harmless(scenario: Scenario, arguments: argparse.Namespace) -> None:
    """Data of the user's are not overwritten by accident."""
    if arguments.keep:
        raise BadValue("--keep is given with --mount, expected only where the mount is made for the purpose")
    writing = [step for step in scenario.steps if isinstance(step, Load) or _is_write(step)]
    if writing and not arguments.overwrite:
        raise BadValue(
            f"{arguments.file}:{writing[0].line}: writes to the disks of {arguments.mount}, expected --overwrite if "
            "what they hold may go"
        )


def _is_write(step: AnyStep) -> bool:
    return isinstance(step, Request) and step.kind == "write"
