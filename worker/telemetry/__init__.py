"""Everything a worker shows: metrics, health and log.

- `metrics`: the figures that Prometheus scrapes
- `verdicts`: those of evaluated messages, counted for many at once
- `verdict_families`: their names, texts, labels and buckets
- `flow`: what became of the messages that were taken
- `labels`: the values of labels
- `families`: metrics of many values at once, and of values at each scrape
- `health`: serves `/metrics`, `/healthz` and `/readyz`
- `server`: the HTTP server for them, from waitress
- `latest`: a value that is read in the background
- `logs`: the log's format
- `scrape`: reads a worker's `/metrics` and other pages

May import `schemas`, `hrm.data`, `worker.evaluator` and `worker.broker.keys`.
"""
