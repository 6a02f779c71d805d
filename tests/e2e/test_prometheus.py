"""A real Prometheus scrapes a cluster through /sd, and everything under deploy/prometheus works with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.nvml import StandIn
from harness.prometheus import DEPLOY, Prometheus, ask, need_prometheus, promtool
from harness.wait import wait_for

import noded
from noded.cluster_utils import Cluster
from noded.util.metrics import Counter, Gauge, Histogram

MB = 10**6


def test_the_rules_are_sound() -> None:
    need_prometheus()
    assert "rules found" in promtool("check", "rules", str(DEPLOY / "noded.rules.yml"))
    promtool("check", "config", "--syntax-only", str(DEPLOY / "prometheus.yml"))


@noded.remote
def count(number: int) -> int:
    Counter("orders", "Orders served", tag_keys=("kind",)).inc(tags={"kind": "odd" if number % 2 else "even"})
    Histogram("order_seconds", "How long they took", boundaries=[1, 10]).observe(number)
    return number


@noded.remote(num_cpus=1, max_retries=0)
def die() -> None:
    os._exit(3)


@noded.remote(num_cpus=0)
class Keeper:
    def keep(self, value: float) -> int:
        Gauge("level").set(value)
        return os.getpid()


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three nodes, one of which seems to have two GPUs."""
    need_prometheus()
    gpus = StandIn.build(tmp_path).env(2, memory=80 << 30, used=30 << 30, busy=75)
    made = Cluster()
    try:
        made.add_node(num_cpus=2, object_store_memory=80 * MB)
        made.add_node(num_cpus=1, resources={"there": 1})
        for name, value in gpus.items():
            monkeypatch.setenv(name, value)
        made.add_node(num_cpus=1, num_gpus=2)
        made.connect()
        yield made
    finally:
        made.shutdown()


def work() -> Any:
    """A bit of everything that the dashboard shows; what is returned must live on."""
    assert noded.get([count.remote(number) for number in range(20)], timeout=60) == list(range(20))
    kept = [noded.put(bytes(20 * MB)) for _ in range(6)]
    elsewhere = count.options(resources={"there": 0.1}).remote(20)
    assert noded.wait([elsewhere], timeout=60, fetch_local=False)[0]
    keepers = [Keeper.options(resources={"there": 0.1}).remote() for _ in range(2)]
    assert noded.get([keeper.keep.remote(7) for keeper in keepers], timeout=60)
    return kept, elsewhere, keepers


def test_what_prometheus_sees_of_a_cluster(machines: Cluster, tmp_path: Path) -> None:
    nodes = {node["NodeName"]: node["NodeID"] for node in noded.nodes()}
    assert machines.head_node is not None
    kept = work()
    with Prometheus(tmp_path / "prometheus", machines.head_node.address) as prometheus:

        def scraped() -> bool:
            return len(prometheus.query("count_over_time(up[1m]) > 3")) == 3

        wait_for(scraped, lambda: f"not all are scraped: {prometheus.targets()}; {prometheus.log()}", 40)
        with pytest.raises(noded.exceptions.WorkerCrashedError):  # now, so that its alert's increase() sees it
            noded.get(die.remote(), timeout=60)
        deaths = 'sum(noded_worker_deaths_total{kind="exit"})'
        wait_for(lambda: prometheus.values(deaths, "kind") == {"": 1}, "the death of a worker is not told")
        up = prometheus.values("up", "cluster", "node", "node_id")
        assert up == {(machines.name, name, id_): 1 for name, id_ in nodes.items()}

        def sums(expression: str) -> float:
            return sum(float(series["value"][1]) for series in prometheus.query(expression))

        assert prometheus.values("noded_head_nodes", "state") == {"ALIVE": 3, "DRAINING": 0, "AWAY": 0, "DEAD": 0}
        assert sums('noded_resources{name="CPU"}') == 4 and sums('noded_resources{name="GPU"}') == 2
        assert sums('noded_tasks_submitted_total{name="count"}') == 21
        assert sums('noded_tasks_finished_total{name="count"}') == 21
        assert sums('noded_tasks_failed_total{name="die"}') == 1
        assert prometheus.values("sum by (kind) (orders_total)", "kind") == {"odd": 10, "even": 11}
        assert sums("order_seconds_count") == 21 and sums("order_seconds_sum") == sum(range(21))
        assert prometheus.values('sum by (le) (order_seconds_bucket{le!="+Inf"})', "le") == {"1.0": 2, "10.0": 11}
        assert list(prometheus.values("level", "WorkerId").values()) == [7, 7]
        assert sums('noded_actors{name="Keeper",state="alive"}') == 2
        assert sums("noded_store_spilled_bytes_total") >= 40 * MB <= sums("noded_store_spilled_bytes")
        assert set(prometheus.values("noded_node_gpu_utilization_ratio", "gpu").items()) == {("0", 0.75), ("1", 0.75)}
        assert set(prometheus.values("noded_node_gpu_memory_used_bytes", "gpu").values()) == {30 << 30}
        assert all(load > 0 for load in prometheus.values("noded_node_memory_used_bytes", "node").values())

        empty = [query for query in dashboard_queries(machines.name) if not prometheus.query(query)]
        assert not empty, f"these queries of the dashboard have no data: {empty}"
        wait_for(
            lambda: all(rule["health"] == "ok" for rule in prometheus.rules()),
            lambda: f"rules fail: {[rule for rule in prometheus.rules() if rule['health'] != 'ok']}",
        )
        firing = {rule["name"] for rule in prometheus.rules() if rule["state"] == "firing"}
        assert not firing, f"alerts although all is well: {firing}"

    for node in (machines.head_node, *machines.worker_nodes):
        promtool("check", "metrics", given=ours(ask(node.address, "/metrics").body.decode()))
    del kept


def dashboard_queries(cluster: str) -> list[str]:
    """As Grafana would send them."""
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"] if panel["type"] != "row")
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 50
    values = {"$cluster": cluster, "$node": ".*", "$__rate_interval": "20s"}
    for name, value in values.items():
        queries = [query.replace(name, value) for query in queries]
    assert not [query for query in queries if "$" in query]
    return queries


def ours(page: str) -> str:
    """Without what programs have recorded, by whatever names: also tests that ran in this process before."""
    return "".join(
        line + "\n"
        for line in page.splitlines()
        if (line.split()[2] if line.startswith("#") else line).startswith(("noded_", "process_"))
    )
