"""Redis as this project uses it.

- `keys`: every name this project uses in Redis
- `contract`: tasks, batches and timeouts that producers and workers agree on
- `app`: the Celery application that producers and workers agree on
- `producer`: this application for producers and for the command `celery`, by the environment
- `urls`: the URL of Redis, checked and turned into connections
- `tls`: what can be wrong with certificates
- `errors`: which errors of Redis pass by themselves, and how they are worded
- `version`: the check of a server's version
- `embedded`: a Redis server from a PyPI wheel
- `backlog`: the number of messages in each queue
- `streams`: failures and dead letters, written and read

May import `schemas`, `worker.settings`, `worker.child` and `worker.installation`.
"""
