"""What brings a device back from standby without an operator: the policies, and how patiently they are followed.

Values only. Knows nothing of how a policy is carried out, or where it was written down.
"""

import shlex
from dataclasses import dataclass

# A policy's text is that of the attribute `recovery`.


@dataclass(frozen=True, slots=True)
class Manual:
    """An operator recovers the device."""

    def __str__(self) -> str:
        return "manual"


@dataclass(frozen=True, slots=True)
class Reopen:
    """The top's own path is opened again."""

    def __str__(self) -> str:
        return "reopen"


@dataclass(frozen=True, slots=True)
class Replace:
    """The image at an absolute path takes the place of the top."""

    path: str

    def __str__(self) -> str:
        return f"replace {self.path}"


@dataclass(frozen=True, slots=True)
class Command:
    """A user's program recovers the device, by whatever means."""

    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"command {shlex.join(self.arguments)}"


Policy = Manual | Reopen | Replace | Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """`attempts` per outage, None without a limit; after the n-th that failed `backoff_s` * 2**(n-1), at most
    `backoff_max_s`, go by before the next.

    An outage that begins within `settle_s` of a recovery continues the one before it. `probe`: the storage must have
    answered `healthy_probes` probes in a row, `probe_interval_s` apart, before an attempt; None: unless a command is to
    recover, which may have to bring the storage back itself.
    """

    attempts: int | None = None
    backoff_s: float = 1
    backoff_max_s: float = 60
    settle_s: float = 60
    probe: bool | None = None
    probe_interval_s: float = 1
    probe_timeout_s: float = 10
    healthy_probes: int = 3
    command_timeout_s: float = 300

    def probes_for(self, policy: Policy) -> bool:
        return self.probe if self.probe is not None else not isinstance(policy, Command)

    def backoff_after_s(self, attempts: int) -> float:
        # The exponent is bounded: an outage may last for thousands of attempts.
        return min(self.backoff_s * 2.0 ** min(attempts - 1, 64), self.backoff_max_s)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a configuration says of one device."""

    policy: Policy = Manual()
    patience: Patience = Patience()
