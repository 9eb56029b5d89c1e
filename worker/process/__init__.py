"""One worker process.

- `devices`: pins the process to one device, before torch is imported
- `run`: joins evaluator, delivery and telemetry, from start to drain

May import every package of `worker` but `worker.client`, `worker.demo` and `worker.cli`.
"""
