"""What a command costs: CPU seconds of its whole process tree, wall seconds, peak memory; and nginx to serve what it fetches."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import psutil

SUBREAPER = 36  # prctl(2): orphans of the tree become children of the watcher, so that they are still found
EVERY_S, PSS_EVERY = 0.1, 10  # how often the tree is looked at; memory at each tenth look, since it costs more


@dataclass(frozen=True)
class Cost:
    """`cpu_s`: user and system, of every process of the tree, each as it was seen last. `peak_mb`: largest sum of their PSS.

    Sampled, since Ray's raylet does not wait for its workers, whose time is then in nobody's rusage. A process's last EVERY_S are lost; so
    is one that lives shorter.
    """

    cpu_s: float
    wall_s: float
    peak_mb: float
    output: str


def cost(
    command: Sequence[str],
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 3600,
    between: tuple[str, str] | None = None,
) -> Cost:
    """Runs a command to its end. Raises SystemExit with what it printed if it fails.

    `between`: two texts that it prints. Only what happens from the first to the second counts, and then the command is asked to stop.
    """
    with tempfile.TemporaryFile("w+") as log:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *command], stdout=log, stderr=subprocess.STDOUT, cwd=cwd, env=env
        )
        cpu, peak, before, waiting, reached = dict[tuple[int, float], float](), 0.0, 0.0, between is not None, False
        tree = psutil.Process(process.pid)
        for look in itertools.count():
            if process.poll() is not None or time.monotonic() - began > timeout:
                break
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, _look(tree.children(recursive=True), cpu, memory=look % PSS_EVERY == 0))
            if waiting and between and between[0] in _printed(log):
                waiting, peak, before, began = False, 0.0, sum(cpu.values()), time.monotonic()
            elif between and not waiting and between[1] in _printed(log):
                reached = True
                break
            time.sleep(EVERY_S)
        spent = Cost(sum(cpu.values()) - before, time.monotonic() - began, peak / 1e6, "")
        if process.poll() is None:
            for one in tree.children():
                one.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=120)
        process.kill()
        code, output = process.wait(), _printed(log)
        if (code and not reached) or (between and not reached):
            raise SystemExit(f"{' '.join(command)} ended with {code}:\n{output[-4000:]}")
        return replace(spent, output=output)


def medians(costs: Sequence[Cost]) -> str:
    """In words, each figure's own."""
    cpu, wall, peak = (statistics.median(getattr(one, what) for one in costs) for what in ("cpu_s", "wall_s", "peak_mb"))
    return f"{cpu:.1f} CPU-s, {wall:.1f} s, peak {peak:,.0f} MB"


def _printed(log: IO[str]) -> str:
    return Path(f"/proc/self/fd/{log.fileno()}").read_text()


def _look(processes: list[psutil.Process], cpu: dict[tuple[int, float], float], memory: bool) -> float:
    """Notes each process's CPU seconds by (pid, start); returns their PSS in bytes, where asked."""
    total = 0.0
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = one.cpu_times()
            cpu[one.pid, one.create_time()] = times.user + times.system
            total += one.memory_full_info().pss if memory else 0
    return total


def _watch(command: list[str]) -> int:
    """In a process of its own: runs the command as the parent of all its orphans."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    return subprocess.call(command)


def pictures_in(out: Path) -> int:
    """JPEGs in the tars below a folder: a program that lost some would seem the faster."""
    count = 0
    for path in out.rglob("*.tar"):
        with tarfile.open(path) as tar:
            count += sum(name.endswith(".jpg") for name in tar.getnames())
    return count


@contextlib.contextmanager
def nginx(folder: Path, work: Path, log: Path | None = None) -> Iterator[int]:
    """nginx over a folder on loopback, one worker; yields its port. Its queries are ignored: `/1.jpg?7` is `/1.jpg`.

    `log`: a file for the time of each answer, Unix seconds, a line each.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise SystemExit("this benchmark serves its input by nginx, which is not installed (Debian: apt-get install nginx-light)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    work = work.resolve()
    config = work / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.log;"
        f"events {{ worker_connections 4096; }}"
        f"http {{ log_format time $msec; access_log {f'{log} time' if log else 'off'};"
        f"sendfile on; tcp_nodelay on; open_file_cache max=20000; types {{ image/jpeg jpg; }}"
        f"client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work}; uwsgi_temp_path {work}; scgi_temp_path {work};"
        f"server {{ listen 127.0.0.1:{port} backlog=4096; root {folder.resolve()}; keepalive_requests 100000; }} }}"
    )
    process = subprocess.Popen([program, "-c", str(config), "-e", f"{work}/nginx.log"])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(_watch(sys.argv[1:]))
