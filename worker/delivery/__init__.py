"""A message's way through a worker: taken, checked, evaluated, stored and counted.

- `transport`: takes items from Redis, each noted as unacknowledged in the same script
- `envelope`: reads an item of a queue as a task, or refuses it
- `consumer`: Celery's consumer, which reconnects and renews its messages
- `tasks`: takes the messages out of a task's arguments
- `service`: gives each message one outcome
- `outcomes`: stores outcomes before their messages are acknowledged

May import `schemas`, `worker.settings`, `worker.evaluator`, `worker.broker` and
`worker.telemetry`.
"""
