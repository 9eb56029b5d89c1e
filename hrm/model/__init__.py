"""The network, examples as its tensors, and what its logits mean.

- `config`: the sizes of a network, padding
- `network`: HRM (ACT v1), equal to the public reference
- `batch`: examples as tensors
- `reference_loop`: the plain evaluation loop, the yardstick for the engine
- `outputs`: log-probabilities, and whether an answer is right

May import `schemas`.
"""
