"""Everything about messages: broker, delivery, metrics, worker processes, client, command line.

`worker.client` imports neither torch nor `hrm`; each command imports the modules that do only when
it runs.
"""
