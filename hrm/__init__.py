"""Everything about the model: vocabulary, conversion, network, checkpoints, engine, training.

Knows no broker and no metrics server. Imports `schemas`, torch and numpy.
"""
