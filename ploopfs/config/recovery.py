"""`recovery` of a device: who brings it back from standby, and how patiently.

A word (`manual`, `reopen`), or a mapping with one policy and, beside it, how patiently it is followed. Knows nothing of
the rest of the file. Invariant: what `recovery_of` returns obeys every rule below, and its paths are absolute.
"""

from collections.abc import Callable, Mapping

from ploopfs.bounds import MAX_ATTEMPTS, MAX_COMMAND_ARGUMENTS, MAX_HEALTHY_PROBES, MAX_RECOVERY_S
from ploopfs.config.rules import ListOf, MapOf, Scalar, Value, Walk, is_path, seconds_up_to, shown, whole
from ploopfs.device.recovery import Command, Manual, Patience, Policy, Recovery, Reopen, Replace

WORDS: Mapping[str, Policy] = {"manual": Manual(), "reopen": Reopen()}
POLICIES = ("reopen", "replace", "command")

_SECONDS = seconds_up_to(MAX_RECOVERY_S)
_SECONDS_OR_0 = seconds_up_to(MAX_RECOVERY_S, zero=True)
_ARGUMENT = Scalar("an argument: text without a NUL (quote a number)", (str,), lambda text: not text or is_path(text))
_PROGRAM = Scalar("the path or the name of a program", (str,), is_path)

_PATIENCE = {
    "attempts": whole(1, MAX_ATTEMPTS),
    "backoff_s": _SECONDS,
    "backoff_max_s": _SECONDS,
    "settle_s": _SECONDS_OR_0,
    "probe": Scalar("true or false", (bool,)),
    "probe_interval_s": _SECONDS,
    "probe_timeout_s": _SECONDS,
    "healthy_probes": whole(1, MAX_HEALTHY_PROBES),
    "command_timeout_s": _SECONDS,
}

RECOVERY = MapOf(
    f"manual, reopen, or a mapping with one of {', '.join(POLICIES)}",
    {
        "reopen": Scalar("true", (bool,), bool),
        "replace": Scalar("the path of the image that takes the place of the top", (str,), is_path),
        "command": ListOf(
            f"a program and its arguments: 1 to {MAX_COMMAND_ARGUMENTS} texts",
            _ARGUMENT,
            range(1, MAX_COMMAND_ARGUMENTS + 1),
            _PROGRAM,
        ),
        **_PATIENCE,
    },
    lone=Scalar(
        f"{', '.join(WORDS)}, or a mapping with one of {', '.join(POLICIES)}", (str,), lambda word: word in WORDS
    ),
)


def check_recovery(walk: Walk, found: Value, where: str) -> None:
    """What is about several keys of it."""
    if not isinstance(found, dict):
        return
    given = [key for key in POLICIES if key in found]
    if len(given) != 1:
        walk.error(where, f"has {' and '.join(given) or 'no policy'}, expected exactly one of {', '.join(POLICIES)}")
    first, largest = (found.get(key, getattr(Patience(), key)) for key in ("backoff_s", "backoff_max_s"))
    if first is not None and largest is not None and first > largest:
        key = "backoff_max_s" if "backoff_max_s" in found else "backoff_s"
        limit = f"at least backoff_s, {first:g}" if key == "backoff_max_s" else f"at most backoff_max_s, {largest:g}"
        walk.error(f"{where}.{key}", f"is {shown(found[key])}, expected {limit}")
    if "command_timeout_s" in found and given != ["command"]:
        walk.error(f"{where}.command_timeout_s", "is given, expected only beside command")


def recovery_of(found: Value, resolved: Callable[[str], str]) -> Recovery:
    """`resolved` makes a path absolute. A program without a slash is looked for as a shell does."""
    if not isinstance(found, dict):
        return Recovery(WORDS[found])
    patience = Patience(**{key: value for key, value in found.items() if key not in POLICIES})
    match found:
        case {"replace": path}:
            return Recovery(Replace(resolved(path)), patience)
        case {"command": [program, *arguments]}:
            return Recovery(Command((resolved(program) if "/" in program else program, *arguments)), patience)
        case _:
            return Recovery(Reopen(), patience)
