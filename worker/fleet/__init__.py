"""Several workers from one command: a process that starts them, watches them and answers for them.

- `members`: reads `--devices`, and divides the cores
- `child`: one worker process: its output, its readiness, its end
- `restarts`: when a worker that ended is started again, and when it is given up
- `supervisor`: keeps one child for each member until told to stop
- `pages`: one `/metrics`, `/readyz`, `/healthz` and `/targets` for all of them
- `merge`: joins the metrics of several workers
- `run`: joins these parts

Imports no torch and no Celery. May import `schemas`, `worker.settings`, `worker.child`,
`worker.telemetry` and `worker.process`.
"""
