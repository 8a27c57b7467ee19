"""A step of a scenario in one line of words. Knows nothing of how it is played."""

from ploopfs.config.scenario import (
    AnyStep,
    Command,
    ExpectEvent,
    ExpectLoad,
    ExpectValue,
    Inject,
    Load,
    Remove,
    Request,
    Store,
    Verify,
)

_COMPARED = {"is": "reads", "matches": "matches", "at_least": "is at least"}
_SHOWN = 80


def described(step: AnyStep) -> str:
    match step:
        case Inject(device=device, words=words, name=name):
            return f"inject {device} {' '.join(words)}" + (f" as {name}" if name else "")
        case Remove(name=name):
            return f"remove {name}" if name else "remove all"
        case Request(device=device, kind=kind, count=count, errno=errno):
            many = f" {count} times" if count > 1 else ""
            return f"{kind} {device}{many}" + (f" with {errno}" if errno else "")
        case Load(device=device, start=start):
            return f"load {device} {'start' if start else 'stop'}"
        case ExpectValue(device=device, attribute=attribute, compare=compare, text=text):
            return f"expect {device} {attribute} {_COMPARED[compare]} {text!r}"
        case ExpectEvent(device=device, event=event, facts=facts):
            return " ".join([f"expect {device} event {event}", *(f"{key}={value}" for key, value in facts)])
        case ExpectLoad(device=device, errors=errors):
            return f"expect {device} load with {'some errors' if errors else 'no errors'}"
        case Store(device=device, path=path, value=value, in_mount=in_mount, errno=errno):
            where = path if in_mount else f"{device} {path}"
            return f"{_act(step)} {value!r} > {where}" + (f" with {errno}" if errno else "")
        case Command(command=command):
            first, _, rest = command.strip().partition("\n")
            short = first[:_SHOWN] + ("..." if rest or len(first) > _SHOWN else "")
            return f"{_act(step)}: {short}"
        case Verify(what=what):
            return f"verify {what}"


def _act(step: Store | Command) -> str:
    return "recover" if step.is_recovery else "act"
