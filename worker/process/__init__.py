"""Worker processes: running one in this process, and starting others.

- `devices`: pins the process to one device, before torch is imported
- `run`: joins evaluator, delivery and telemetry, from start to drain
- `swap`: the evaluator of a worker, whose place another one can take
- `reload`: changes a worker's checkpoint while it works, and tests its own answers
- `reload_requests`: how running workers are asked to reload, and answer
- `shutdown`: the ways in which a worker ends
- `remote`: answers Celery's `inspect` commands and publishes its events, if that is wanted
- `watchdog`: notices an engine that hangs
- `notify`: tells systemd that a process is ready, alive or stopping
- `child_worker`: starts a worker in a process of its own, waits for it and ends it

May import every package of `worker` but `worker.client`, `worker.fleet`, `worker.demo` and
`worker.cli`.
"""
