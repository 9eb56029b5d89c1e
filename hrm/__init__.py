"""Everything about the model: vocabulary, conversion, network, checkpoints, engine, training.

Knows no broker and no metrics server. Imports `schemas`, and torch where there are tensors:
conversion and files need none, so that an agent's install can use them.
"""
