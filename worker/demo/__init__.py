"""The demo: a real Redis, a real worker, and an agent that sends sound and malformed messages.

- `session`: runs the demo
- `traffic`: makes the messages
- `tally`: counts the outcomes
- `view`: shows the counts

May import `schemas`, `hrm.data`, `worker.client`, `worker.broker`, `worker.telemetry` and
`worker.process`.
"""
