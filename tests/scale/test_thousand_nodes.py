"""A real head with many nodes that are fakes (bench/fake_nodes.py): what it makes of them, and what they cost it."""

from __future__ import annotations

import pytest

from bench.cluster_size import BigCluster, decisions


def test_a_hundred_nodes_share_actors_and_groups_and_come_back_to_a_new_head() -> None:
    with BigCluster(100) as cluster:
        client, other = cluster.fleets
        client.tell("change", fraction=0.2)
        client.tell("actors", count=300, cpu=1.0)
        client.tell("actors", count=20, cpu=1.0, max_restarts=1)
        client.tell("groups", count=20, bundles=3, cpu=2.0, strategy="STRICT_SPREAD")
        client.tell("groups", count=10, bundles=3, cpu=2.0, strategy="STRICT_PACK")
        before = [fleet.tell("where") for fleet in (client, other)]
        actors = [count for place in before for count in place["actors"]]
        bundles = [count for place in before for count in place["bundles"]]
        assert sum(actors) == 320 and max(actors) <= 16, actors
        assert sum(bundles) == 90, bundles
        assert min(map(sum, (place["actors"] for place in before))) > 0, "one half of the nodes got nothing"

        cluster.restart()
        assert [fleet.tell("where") for fleet in (client, other)] == before

        # More than there is room for: what fits is placed, the rest waits, and all of it can be ended.
        client.tell("more", actors=200, groups=10, cpu=16.0)
        client.tell("actors", count=5, cpu=0.01)
        assert client.tell("end")["ended"] == 300 + 20 + 30 + 200 + 10 + 5
        assert all(not any(fleet.tell("where")["actors"]) for fleet in (client, other))
        assert all(not any(fleet.tell("where")["bundles"]) for fleet in (client, other))
        assert not any(fleet.tell("stats")["lost"] for fleet in (client, other))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_thousand_nodes_cost_the_head_less_than_a_core() -> None:
    with BigCluster(1000) as cluster:
        client = cluster.fleets[0]
        assert cluster.idle(5, 0.0)["head_cpu_percent"] < 100
        client.tell("actors", count=10_000, cpu=0.01)
        for strategy in ("PACK", "SPREAD"):
            client.tell("groups", count=500, bundles=2, cpu=0.01, strategy=strategy)
        # The machine may be busy with something else for a while: three tries for what is told in wall-clock time.
        tries = [cluster.idle(5, 0.1) for _ in range(3)]
        assert max(each["head_cpu_percent"] for each in tries) < 100, tries
        assert min(each["view_age_ms"]["max"] for each in tries) < 1000, tries
        assert tries[-1]["head_rss_mb"] < 300, tries
        client.tell("more", actors=2000, groups=50, cpu=16.0)
        assert cluster.idle(5, 0.1)["head_cpu_percent"] < 100
        back = cluster.restart()
        assert back["head_cpu_s"] < 15, back  # nodes whose head is silent for longer stop their restartable actors
        client.tell("end")


@pytest.mark.slow
def test_a_decision_among_a_thousand_nodes_takes_less_than_a_millisecond() -> None:
    found = decisions(1000)

    assert all(microseconds < 1000 for microseconds in found.values()), found
