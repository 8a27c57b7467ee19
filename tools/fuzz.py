"""Plays hostile input to one parser, or to each in turn, guided by the coverage it reaches (libFuzzer, by atheris).

What breaks a target is written to tests/data/fuzz/TARGET/, from where the tests play it first. `ploopfs` and the
targets are those beside this file. Knows no target.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
FOUND = ROOT / "tests/data/fuzz"
INPUT_TIMEOUT_S = 60
MEMORY_MIB = 2048
OWN_MUTATIONS = 2
"""One in so many inputs is made with the tokens of the grammar, the others by libFuzzer."""
EPILOG = """examples:
  tools/fuzz --list
  tools/fuzz descriptor --minutes 5 --corpus ~/corpus/descriptor
  tools/fuzz all --minutes 60

exit codes: 0 nothing was found, 1 an input broke a target (its file is named), 2 usage"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/fuzz", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", metavar="TARGET", nargs="?", help="one of --list, or all")
    parser.add_argument("--minutes", type=float, default=1, metavar="T", help="for each target; default 1")
    parser.add_argument("--corpus", metavar="DIR", help="keep inputs that reach something new here")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same inputs for the same N")
    parser.add_argument("--list", action="store_true", help="print the names of the targets")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if arguments.list or arguments.target in (None, "all"):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - a single target is imported with instrumentation

        if arguments.target != "all":
            print("\n".join(TARGETS))
            return 0 if arguments.list else 2
        return max([_by_itself(name, arguments) for name in TARGETS])
    with contextlib.ExitStack() as stack:
        place = arguments.corpus or stack.enter_context(tempfile.TemporaryDirectory())
        fuzz(arguments.target, Path(place), arguments.minutes, arguments.seed)
    return 0


def _by_itself(name: str, arguments: argparse.Namespace) -> int:
    """libFuzzer ends its process."""
    print(f"fuzz: {name}, {arguments.minutes:g} min", file=sys.stderr, flush=True)
    corpus = ["--corpus", str(Path(arguments.corpus, name))] if arguments.corpus else []
    command = [sys.executable, __file__, name, "--minutes", str(arguments.minutes), "--seed", str(arguments.seed)]
    return int(subprocess.run([*command, *corpus], check=False).returncode != 0)


def fuzz(name: str, corpus: Path, minutes: float, seed: int) -> None:
    import atheris  # noqa: PLC0415 - in its own environment only

    with atheris.instrument_imports(include=["ploopfs", "yaml"], enable_loader_override=False):
        from ploopfs.errors import PloopError  # noqa: PLC0415
        from tests.fuzz import seeds  # noqa: PLC0415
        from tests.fuzz.mutate import mutated  # noqa: PLC0415
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415
    if name not in TARGETS:
        sys.exit(f"fuzz: {name} is no target, expected one of {', '.join(TARGETS)}, or all")
    target = TARGETS[name]
    known = (*target.seeds(), *seeds.found(name))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(known):
        (corpus / f"seed{number}").write_bytes(data)
    (FOUND / name).mkdir(parents=True, exist_ok=True)

    def play(data: bytes) -> None:
        with contextlib.suppress(PloopError):
            target.run(data)

    def mutate(data: bytes, max_bytes: int, seed: int) -> bytes:
        random = Random(seed)
        if random.randrange(OWN_MUTATIONS):
            return bytes(atheris.Mutate(data, max_bytes))
        return mutated((data, data, random.choice(known)), target.tokens, random, max_bytes=max_bytes)

    options = {
        "max_total_time": round(minutes * 60),
        "max_len": target.max_bytes,
        "timeout": INPUT_TIMEOUT_S,
        "report_slow_units": INPUT_TIMEOUT_S,
        "rss_limit_mb": MEMORY_MIB,
        "seed": seed,
        "artifact_prefix": f"{FOUND / name}/",
        "print_final_stats": 1,
        "verbosity": 1,
    }
    flags = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], play, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
