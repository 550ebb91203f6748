"""A real Prometheus that scrapes a server, and Grafana's own classes that read a dashboard."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from conformance.registry import CACHE, Environment, UnreachableError, locked, run

INTERVAL = 1
"""Seconds between scrapes."""

START = 30.0
"""Seconds in which Prometheus has to be ready, and a scrape to have happened."""

GRAFANA = Environment(
    "grafana",
    {"grafana-foundation-sdk==1769699998!10.1.0": "d131ffe49057fb669ba31ce7e28a303c96b3aecf4332b20de33cfa55110d498c"},
)
"""The classes that Grafana's makers generate from its schemas. Grafana itself is on no package registry."""

READ = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

register_default_plugins()
print(JSONEncoder().encode(Dashboard.from_json(json.load(sys.stdin))))
"""


def programs() -> Path:
    """The directory of ``prometheus`` and ``promtool``: installed ones, or Debian's package, unpacked in the cache.

    Raises:
        UnreachableError: there is no Debian package to be had here.
    """
    installed = shutil.which("promtool")
    if installed and shutil.which("prometheus"):
        return Path(installed).parent
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise UnreachableError("no Prometheus is installed, and no apt-get is here to fetch one")
    place = CACHE / "prometheus"
    with locked(CACHE / "prometheus.lock"):
        if not (place / "usr").is_dir():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            run(["apt-get", "download", "prometheus"], timeout=120, cwd=place)
            (package,) = place.glob("*.deb")
            run(["dpkg-deb", "-x", str(package), str(place / "unpacking")], timeout=60)
            (place / "unpacking" / "usr").rename(place / "usr")
    return place / "usr" / "bin"


@dataclass(frozen=True)
class Prometheus:
    """One that runs.

    Attributes:
        http: a client of its interface.
    """

    http: httpx.Client

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer.

        Raises:
            AssertionError: it is an error.
        """
        answer = self.http.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """The labels and the value of each series that an expression gives now."""
        found = self.ask("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def value(self, expression: str) -> float:
        """The value of an expression that gives one series."""
        ((_, value),) = self.query(expression)
        return value

    def scrape(self) -> None:
        """Wait until everything that has happened is known."""
        begin, end = time.time(), time.monotonic() + START
        while not any(at > begin for _, at in self.query("timestamp(up) and up == 1")):
            assert time.monotonic() < end, self.ask("targets", state="active")
            time.sleep(INTERVAL / 5)


@contextmanager
def prometheus(url: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a server.

    Raises:
        UnreachableError: see :func:`programs`.
        AssertionError: ``promtool`` refuses the configuration, or Prometheus does not start.
    """
    bin_ = programs()
    with tempfile.TemporaryDirectory() as directory:
        jobs = [{"job_name": "ryzc", "static_configs": [{"targets": [httpx.URL(url).netloc.decode()]}]}]
        config = Path(directory) / "prometheus.yml"
        wanted = {
            "global": {"scrape_interval": f"{INTERVAL}s", "scrape_timeout": f"{INTERVAL}s"},
            "scrape_configs": jobs,
        }
        config.write_text(json.dumps(wanted))  # JSON is YAML
        run([str(bin_ / "promtool"), "check", "config", str(config)], timeout=30)
        port = _free_port()
        options = [f"--storage.tsdb.path={directory}/data", f"--web.listen-address=127.0.0.1:{port}"]
        log = Path(directory) / "log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [str(bin_ / "prometheus"), f"--config.file={config}", *options], stdout=out, stderr=out
            )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
                _wait_until_ready(http, process, log)
                yield Prometheus(http)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_until_ready(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START
    while True:
        try:
            if http.get("/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def lint(exposition: str) -> list[str]:
    """What ``promtool check metrics`` has to say about an exposition."""
    done = subprocess.run(
        [str(programs() / "promtool"), "check", "metrics"],
        input=exposition,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    remarks = (done.stdout + done.stderr).splitlines()
    return remarks or ([] if done.returncode == 0 else [f"exit code {done.returncode}"])


def read_by_grafana(dashboard: Mapping[str, Any]) -> Any:
    """A dashboard as Grafana's classes understand it: what they do not know is missing.

    Raises:
        UnreachableError: the registry cannot be reached.
    """
    command: Sequence[str] = [str(GRAFANA.make().python), "-c", READ]
    done = subprocess.run(
        command, input=json.dumps(dashboard), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
