"""A message's way through a worker: taken, checked, evaluated, stored and counted.

- `transport`: takes items from Redis, and gives them back or acknowledges them
- `scripts`: the steps of a delivery inside Redis; one script takes an item and notes it
- `suspicion`: items whose deliveries ended in faults, and when they become dead letters
- `envelope`: reads an item of a queue as a task, or refuses it
- `options`: refuses or honours Celery's options of a task
- `consumer`: Celery's consumer, which reconnects and renews its messages
- `tasks`: takes the messages out of a task's arguments
- `service`: gives each message one outcome
- `outcomes`: stores outcomes before their messages are acknowledged
- `markers`: what Redis remembers of counted messages, in few bytes
- `requirements`: the version and the permissions that a worker needs of Redis
- `trouble`: what Redis does not accept at the moment, for readiness and the log

May import `schemas`, `worker.settings`, `worker.evaluator`, `worker.broker` and
`worker.telemetry`.
"""
