"""The engine beside LitServe and Ray Serve: the same network behind HTTP, on the same machine.

- `__main__`: the command `python -m tests.benchmarks.peers`, and its table
- `load`: sends examples over HTTP, at full load or at random times
- `serving`: what all three servers share: their command line, examples and answers
- `engine_server`, `litserve_server`, `ray_server`: the servers, each a process of its own

The peers are no part of the development install:
`pip install -c constraints.txt -e '.[worker,dev,peers]'`. Ray Serve starts only where its daemons
come up within 30 s, so not beside other work on two cores.
"""
