"""A real Prometheus as a process of the test, and what a node's own /metrics says.

A test that needs it is skipped where there is no `prometheus` and `promtool`. Under NODED_TEST_TLS=1 everything speaks
TLS, as the nodes do.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pytest

from harness.redis import free_port
from harness.wait import wait_for

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"


def need_prometheus() -> None:
    for command in ("prometheus", "promtool"):
        if shutil.which(command) is None:
            pytest.skip(f"there is no {command} here: apt-get install prometheus")


def promtool(*arguments: str, given: str = "") -> str:
    """What it says, of what it finds nothing wrong with."""
    done = subprocess.run(
        ["promtool", *arguments], input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    assert done.returncode == 0, f"promtool {' '.join(arguments)}: {done.stdout}"
    return done.stdout


def token_file() -> Path:
    return Path(os.environ["NODED_HOME"]) / "token"


class Page(NamedTuple):
    """An answer of a node."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(address: str, path: str, *, token: bool = True, **headers: str) -> Page:
    """A node's HTTP routes."""
    host, _, port = address.rpartition(":")
    connection: http.client.HTTPConnection
    if ca := os.environ.get("NODED_TLS_CA"):
        context = ssl.create_default_context(cafile=ca)
        context.check_hostname = False
        context.load_cert_chain(os.environ["NODED_TLS_CERT"], os.environ["NODED_TLS_KEY"])
        connection = http.client.HTTPSConnection(host, int(port), timeout=20, context=context)
    else:
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        sent["Authorization"] = f"Bearer {token_file().read_text().strip()}"
    try:
        connection.request("GET", path, headers=sent)
        answer = connection.getresponse()
        return Page(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def scrape(address: str) -> dict[str, float]:
    """A node's /metrics: values by name with labels, as they are written there."""
    page = ask(address, "/metrics")
    assert page.status == 200, page
    lines = [line for line in page.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


class Prometheus:
    """`with Prometheus(tmp_path, head_address) as prometheus:` scrapes twice a second what /sd there names."""

    def __init__(self, directory: Path, head: str) -> None:
        need_prometheus()
        self.directory = directory
        self.port = free_port()
        self._head = head
        self._process: subprocess.Popen[bytes] | None = None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Its series: each {"metric": labels, "value": [time, text]}."""
        told = self._ask("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        assert told["status"] == "success", told
        found: list[dict[str, Any]] = told["data"]["result"]
        return found

    def values(self, expression: str, *labels: str) -> dict[Any, float]:
        """By the value of the label, or those of several."""
        found = {}
        for series in self.query(expression):
            key = tuple(series["metric"].get(label, "") for label in labels)
            found[key[0] if len(labels) == 1 else key] = float(series["value"][1])
        return found

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("/api/v1/targets")["data"]["activeTargets"]
        return found

    def rules(self) -> Iterable[dict[str, Any]]:
        for group in self._ask("/api/v1/rules")["data"]["groups"]:
            yield from group["rules"]

    def log(self) -> str:
        return (self.directory / "log").read_text()[-3000:]

    def __enter__(self) -> Prometheus:
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "prometheus.yml"
        configuration.write_text(json.dumps(self._configuration()))  # YAML takes JSON
        promtool("check", "config", str(configuration))
        command = [
            "prometheus",
            f"--config.file={configuration}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with (self.directory / "log").open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            wait_for(self._ready, lambda: f"Prometheus is not ready: {self.log()}", 30)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)  # its data is of no more use
        self._process.wait(10)

    def _configuration(self) -> dict[str, Any]:
        how: dict[str, Any] = {"authorization": {"type": "Bearer", "credentials_file": str(token_file())}}
        scheme = "http"
        if ca := os.environ.get("NODED_TLS_CA"):
            scheme = "https"
            how["tls_config"] = {
                "ca_file": ca,
                "cert_file": os.environ["NODED_TLS_CERT"],
                "key_file": os.environ["NODED_TLS_KEY"],
                "insecure_skip_verify": True,  # the tests' certificates name no address
            }
        return {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
            "rule_files": [str(DEPLOY / "noded.rules.yml")],
            "scrape_configs": [
                {
                    "job_name": "noded",
                    "http_sd_configs": [{"url": f"{scheme}://{self._head}/sd", "refresh_interval": "1s", **how}],
                    **how,
                }
            ],
        }

    def _ready(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("GET", "/-/ready")
                return connection.getresponse().status == 200
            finally:
                connection.close()
        except OSError:
            return False

    def _ask(self, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            told: dict[str, Any] = json.loads(connection.getresponse().read())
            return told
        finally:
            connection.close()
