"""Redis as this project uses it.

- `keys`: every name in Redis
- `app`: the Celery application that producers and workers agree on
- `embedded`: a Redis server from a wheel
- `backlog`: what waits in the queues

May import `schemas`, `worker.settings` and `worker.child`.
"""
