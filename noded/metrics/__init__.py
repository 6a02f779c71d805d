"""Plain records of metrics, and the page on which a process keeps its own. The exporter is ``noded.http.metrics``."""
