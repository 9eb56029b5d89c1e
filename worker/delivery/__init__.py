"""A message's way through a worker: taken, checked, evaluated, stored and counted.

- `transport`: takes items from Redis, and gives them back or acknowledges them
- `scripts`: the steps of a delivery inside Redis; one script takes an item and notes it
- `suspicion`: items whose deliveries ended in faults, and when they become dead letters
- `envelope`: reads an item of a queue as a task, or refuses it
- `options`: refuses or honours Celery's options of a task
- `hand`: what a worker has in hand, and how much more it takes
- `taken`: an item as it came from Redis
- `consumer`: Celery's consumer, which reconnects and shows that it is alive
- `tasks`: takes the messages out of a task's arguments
- `job`: a task in work, and how it ends
- `waits`: the time that a message waited in its queue
- `service`: gives each message one outcome
- `outcomes`: the rules of what is stored, and with what it is acknowledged
- `storing`: sends what is done to Redis, and sends again what Redis did not accept
- `vital`: threads whose end is the end of the worker
- `upkeep`: renews deliveries, and puts back those of dead workers
- `evidence`: which failures and dead letters the streams keep, in how many bytes
- `markers`: what Redis remembers of counted messages, in few bytes
- `requirements`: the version and the permissions that a worker needs of Redis
- `trouble`: what Redis does not accept at the moment, for readiness and the log

May import `schemas`, `worker.settings`, `worker.evaluator`, `worker.broker` and
`worker.telemetry`.
"""
