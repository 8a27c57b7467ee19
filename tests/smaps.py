"""What /proc/PID/smaps says of a process's memory."""


def in_huge_pages(smaps: str) -> list[range]:
    """The addresses for which huge pages were asked for, whatever the machine's administrator has decided of them."""
    spans, span = [], range(0)
    for line in smaps.splitlines():
        first, *rest = line.split()
        if first == "VmFlags:":
            spans += [span] if "hg" in rest else []
        elif not first.endswith(":"):
            start, end = (int(number, 16) for number in first.split("-"))
            span = range(start, end)
    return spans


def resident_bytes(smaps: str, span: range) -> int:
    """So much of what is mapped there is in memory."""
    is_there, total_kib = False, 0
    for line in smaps.splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(number, 16) for number in first.split("-"))
            is_there = start in span and end <= span.stop
        elif first == "Rss:" and is_there:
            total_kib += int(rest[0])
    return total_kib << 10
