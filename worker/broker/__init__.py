"""Redis as this project uses it.

- `keys`: every name in Redis
- `app`: the Celery application that producers and workers agree on
- `embedded`: a Redis server from a wheel
- `backlog`: what waits in the queues
- `streams`: failures and dead letters, written and read

May import `schemas`, `worker.settings`, `worker.child` and `worker.installation`.
"""
