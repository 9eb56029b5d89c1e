"""The network, its input tensors, and the meaning of its logits.

- `config`: sizes of a network, padding
- `network`: HRM (ACT v1), numerically equal to the public reference
- `batch`: examples as tensors
- `reference_loop`: the plain evaluation loop that the engine is measured against
- `outputs`: log-probabilities, and whether an answer is right

May import `schemas`.
"""
