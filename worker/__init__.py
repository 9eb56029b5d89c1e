"""Everything about messages: Celery app, delivery, metrics, devices, client, command line.

`worker.client` imports neither torch nor `hrm`; modules that do are imported by the commands that
need them.
"""
