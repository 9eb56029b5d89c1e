"""Everything about the model; no queue and no metrics server.

One package for each subject: `data`, `model`, `checkpoint`, `kernels`, `inference`, `evaluation`,
`ensemble`, `training`. `data`, `checkpoint.names` and `inference.prediction` need no torch, so that
an agent's install and a worker that has not pinned its device yet can import them.
"""
