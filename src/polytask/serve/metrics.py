"""What Prometheus reads: requests by route and code, their time, the queue, and the bundle's version. No ids."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TYPE = CONTENT_TYPE_LATEST.encode()


class Metrics:
    """The numbers of one process; every one bears the number of its ``worker``, for each worker counts for itself."""

    def __init__(self, worker: int = 1, waiting: Callable[[], int] | None = None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._worker = str(worker)
        self._requests = Counter(
            "polytask_requests", "Requests answered", ["route", "code", "worker"], registry=self.registry
        )
        self._seconds = Histogram(
            "polytask_request_seconds",
            "Seconds from the head of a request to its answer",
            ["route", "worker"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._reloads = Counter(
            "polytask_reloads", "Bundles loaded or refused", ["outcome", "worker"], registry=self.registry
        )
        self._model = Gauge(
            "polytask_model_info", "The bundle that answers", ["version", "worker"], registry=self.registry
        )
        queue = Gauge(
            "polytask_queue_length", "Requests that wait for a prediction", ["worker"], registry=self.registry
        )
        queue.labels(self._worker).set_function(waiting or (lambda: 0))
        self._known: dict[tuple[str, int], Counter] = {}
        self._timed: dict[str, Histogram] = {}

    def answered(self, route: str, code: int, seconds: float) -> None:
        """Count one request; ``route`` is one of a fixed list."""
        if (counter := self._known.get((route, code))) is None:
            counter = self._known[route, code] = self._requests.labels(route, str(code), self._worker)
        if (timer := self._timed.get(route)) is None:
            timer = self._timed[route] = self._seconds.labels(route, self._worker)
        counter.inc()
        timer.observe(seconds)

    def loaded(self, version: str) -> None:
        """A bundle now answers."""
        self._reloads.labels("loaded", self._worker).inc()
        self._model.clear()
        self._model.labels(version, self._worker).set(1)

    def refused(self) -> None:
        """A bundle was refused."""
        self._reloads.labels("refused", self._worker).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' form."""
        return generate_latest(self.registry)
