"""Prometheus' node_exporter, asked once."""

import socket
import subprocess
import urllib.request

from tests.mounted.daemon import until
from tests.realparts import need


def scraped(*options: str) -> str:
    """What it answers when it is started with these options and no collector but those that they name."""
    need(commands=("prometheus-node-exporter",))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus-node-exporter", f"--web.listen-address={address}", "--collector.disable-defaults", *options]
    answer = ""

    def answers() -> bool:
        nonlocal answer
        try:
            with urllib.request.urlopen(f"http://{address}/metrics") as reply:
                answer = reply.read().decode()
        except OSError:
            return False
        return True

    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as exporter:
        try:
            until(answers, "node_exporter answers")
        finally:
            exporter.terminate()
    return answer
