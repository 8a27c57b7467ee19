"""What an idle CPU of a virtual machine does: to wake one that has halted takes its host, and longer than most requests
take. Whoever compares figures of two machines wants to know."""

from pathlib import Path

_CPUIDLE = Path("/sys/devices/system/cpu/cpuidle/current_driver")
_HALT_POLL = Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")


def halt_poll_us(driver: Path = _CPUIDLE, setting: Path = _HALT_POLL) -> int | None:
    """So long it looks for work before it halts. None where the kernel is none that decides so: on real hardware, or
    without that driver."""
    try:
        if driver.read_text().strip() != "haltpoll":
            return None
        return int(setting.read_text()) // 1000
    except OSError:
        return None
