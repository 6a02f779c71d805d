"""Renders families (`noded/metrics/family.py`) for Prometheus: text 0.0.4 or OpenMetrics, as the request accepts.

In a thread of its own, as two thousand series take a while. Here lies all that knows of prometheus-client, which is
imported with the HTTP side.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

from aiohttp import web
from prometheus_client import ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from noded.metrics.family import Family, Histogram

_COMPRESS_FROM = 1024


class Exposition:
    """Answers for `/metrics`."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._process = ProcessCollector(registry=None)

    async def answer(self, request: web.Request, families: list[Family]) -> web.Response:
        accept = request.headers.get("Accept", "")
        compress = "gzip" in request.headers.get("Accept-Encoding", "")
        loop = asyncio.get_running_loop()
        body, content_type, compressed = await loop.run_in_executor(
            self._thread, self._render, families, accept, compress
        )
        headers = {"Content-Type": content_type, "Cache-Control": "no-store", "Vary": "Accept, Accept-Encoding"}
        if compressed:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _render(self, families: list[Family], accept: str, compress: bool) -> tuple[bytes, str, bool]:
        encode, content_type = choose_encoder(accept)
        body = encode(_Registry([*map(_metric, families), *self._process.collect()]))
        compress = compress and len(body) >= _COMPRESS_FROM
        return gzip.compress(body, 1) if compress else body, content_type, compress


class _Registry:
    """What the encoders want: something to collect from."""

    def __init__(self, metrics: Iterable[Metric]):
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def _metric(family: Family) -> Metric:
    made: Metric
    if family.kind == "counter":
        made = CounterMetricFamily(family.name, family.help)
    elif family.kind == "histogram":
        made = HistogramMetricFamily(family.name, family.help)
    else:
        made = GaugeMetricFamily(family.name, family.help)
    for labels, value in family.samples:
        if isinstance(value, Histogram):
            _add_histogram(made, dict(labels), value)
        else:
            made.add_sample(family.name, dict(labels), value)
    return made


def _add_histogram(made: Metric, labels: dict[str, str], value: Histogram) -> None:
    counts = list(accumulate(value.buckets))
    for boundary, count in zip((*map(repr, value.boundaries), "+Inf"), counts, strict=True):
        made.add_sample(made.name + "_bucket", {**labels, "le": boundary}, count)
    made.add_sample(made.name + "_count", labels, counts[-1])
    made.add_sample(made.name + "_sum", labels, value.sum)
