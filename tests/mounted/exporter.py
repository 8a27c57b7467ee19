"""Prometheus' node_exporter, asked once."""

import socket
import subprocess
import sys
import urllib.request

from tests.mounted.daemon import HANG_S
from tests.realparts import need

ON_SOCKET = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.execvpe(sys.argv[2], sys.argv[2:], os.environ | {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
"""
"""It is given the socket as systemd gives it: no port can be taken in between, and whoever connects early waits."""


def scraped(*options: str) -> str:
    """What it answers when it is started with these options and no collector but those that they name."""
    need(commands=("prometheus-node-exporter",))
    command = ["prometheus-node-exporter", "--web.systemd-socket", "--collector.disable-defaults", *options]
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.fileno()
        exporter = subprocess.Popen(
            [sys.executable, "-c", ON_SOCKET, str(number), *command],
            pass_fds=[number],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = listening.getsockname()[1]
    try:
        with direct.open(f"http://127.0.0.1:{port}/metrics", timeout=HANG_S) as reply:
            answer: str = reply.read().decode()
            return answer
    finally:
        exporter.terminate()
        exporter.wait(HANG_S)
