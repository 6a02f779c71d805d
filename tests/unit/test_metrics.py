"""noded.util.metrics: what is refused, and what is recorded."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest

from noded.client import metrics
from noded.metrics.page import as_plain
from noded.util.metrics import Counter, Gauge, Histogram

_names = (f"metric_{number}" for number in itertools.count())


@pytest.fixture
def name() -> str:
    """One that no other test uses: the values are the process's."""
    return next(_names)


def values(name: str) -> Any:
    """What a reader of this process's page would see of it."""
    page = metrics.read_page()
    return (
        []
        if page is None
        else [(dict(series.tags), as_plain(series, values)) for series, values in page.series() if series.name == name]
    )


def test_a_counter_adds_up_per_tags(name: str) -> None:
    counter = Counter(name, "how often", tag_keys=("who",))
    counter.inc(tags={"who": "a"})
    counter.inc(2.5, tags={"who": "a"})
    counter.inc(4, {"who": "b"})

    assert values(name) == [({"who": "a"}, 3.5), ({"who": "b"}, 4.0)]


def test_a_gauge_has_the_last_value_and_ignores_none(name: str) -> None:
    gauge = Gauge(name)
    gauge.set(3)
    gauge.set(-1.5)
    gauge.set(None)

    assert values(name) == [({}, -1.5)]


def test_a_histogram_counts_per_bucket(name: str) -> None:
    histogram = Histogram(name, boundaries=[1, 2])
    for value in (0.5, 1, 1.5, 2, 9):
        histogram.observe(value)

    assert values(name) == [({}, {"buckets": [2, 2, 1], "count": 5, "sum": 14.0})]


def test_two_objects_of_one_name_share_their_values(name: str) -> None:
    Counter(name).inc()
    Counter(name).inc()

    assert values(name) == [({}, 2.0)]


def test_default_tags_fill_in_and_are_overridden(name: str) -> None:
    counter = Counter(name, tag_keys=("where", "who")).set_default_tags({"where": "here"})
    counter.inc(tags={"who": "a"})
    counter.inc(tags={"who": "a", "where": "there"})

    assert values(name) == [({"who": "a", "where": "here"}, 1.0), ({"who": "a", "where": "there"}, 1.0)]


def test_info_says_what_was_given(name: str) -> None:
    histogram = Histogram(name, "seconds", [1.0], ("who",))
    histogram.set_default_tags({"who": "a"})

    assert histogram.info == {
        "name": name,
        "description": "seconds",
        "tag_keys": ("who",),
        "default_tags": {"who": "a"},
        "boundaries": [1.0],
    }


@pytest.mark.parametrize("kind", [Counter, Gauge])
def test_metrics_travel(name: str, kind: Any) -> None:
    metric = kind(name, "text", ("who",)).set_default_tags({"who": "a"})

    assert pickle.loads(pickle.dumps(metric)).info == metric.info


def test_histograms_travel(name: str) -> None:
    histogram = Histogram(name, "text", [1, 2])

    assert pickle.loads(pickle.dumps(histogram)).info == histogram.info


@pytest.mark.parametrize(
    ("error", "make"),
    [
        (ValueError, lambda: Counter("")),
        (TypeError, lambda: Counter(3)),
        (TypeError, lambda: Counter("x", tag_keys="who")),
        (TypeError, lambda: Counter("x", tag_keys=["who"])),
        (TypeError, lambda: Counter("x", tag_keys=(1,))),
        (ValueError, lambda: Histogram("x")),
        (ValueError, lambda: Histogram("x", boundaries=[])),
        (ValueError, lambda: Histogram("x", boundaries=[0, 1])),
        (TypeError, lambda: Histogram("x", boundaries=["a"])),
    ],
)
def test_wrong_metrics_are_refused(error: type[Exception], make: Any) -> None:
    with pytest.raises(error):
        make()


@pytest.mark.parametrize(
    ("error", "use"),
    [
        (ValueError, lambda counter: counter.inc()),
        (ValueError, lambda counter: counter.inc(0, tags={"who": "a"})),
        (ValueError, lambda counter: counter.inc(-1, tags={"who": "a"})),
        (TypeError, lambda counter: counter.inc("1", tags={"who": "a"})),
        (TypeError, lambda counter: counter.inc(1, tags={"who": 1})),
        (ValueError, lambda counter: counter.set_default_tags({"other": "a"})),
        (TypeError, lambda counter: counter.set_default_tags({"who": 1})),
    ],
)
def test_wrong_values_are_refused_and_leave_nothing(name: str, error: type[Exception], use: Any) -> None:
    counter = Counter(name, tag_keys=("who",))
    with pytest.raises(error):
        use(counter)

    assert values(name) == []
