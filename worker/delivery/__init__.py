"""A message's way through a worker: taken, checked, evaluated, stored and counted.

- `transport`: takes items from Redis, each noted as unacknowledged in the same script
- `envelope`: an item of a queue as a task
- `consumer`: Celery's consumer, for as many messages as there are slots
- `tasks`: the messages in a task's arguments
- `service`: every message has one outcome
- `outcomes`: stores outcomes before they are acknowledged

May import `schemas`, `worker.settings`, `worker.evaluator`, `worker.broker` and
`worker.telemetry`.
"""
