"""One light process beside the workers: what none of them can show, and a question to all of them.

- `reading`: the queues, streams, agents and memory, as Redis has them at one moment
- `figures`: the metrics made of the latest reading
- `canary`: messages with a known answer, sent through the live queue
- `run`: puts the parts together, and ends them

Needs no torch. May import `schemas`, `hrm.data`, `hrm.checkpoint.solved`, `worker.settings`,
`worker.broker`, `worker.client`, `worker.telemetry` and `worker.delivery`.
"""
