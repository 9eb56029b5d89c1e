"""Examples in, predictions out: queue, slots, lanes and cache.

- `config`: the settings of an engine
- `engine`: a model on a device with a fixed number of slots
- `lane`: one network's slots, stepped together
- `lanes`: the lanes of several networks, and fewer slots if memory is short
- `prediction`: what an engine answers, and what answers as an engine does
- `cache`: equal examples are answered once
- `threads`: a step's rows shared among CPU threads
- `transfers`: tensors to a GPU and back without waiting

May import `schemas`, `hrm.model`, `hrm.checkpoint` and `hrm.kernels`.
"""
