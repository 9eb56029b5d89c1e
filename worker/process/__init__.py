"""Worker processes: one from its start to its end, and others started from here.

- `devices`: pins the process to one device, before torch is imported
- `run`: joins evaluator, delivery and telemetry, from start to drain
- `child_worker`: starts a worker in a process of its own, waits for it and ends it

May import every package of `worker` but `worker.client`, `worker.demo` and `worker.cli`.
"""
