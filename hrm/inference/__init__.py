"""Examples in, predictions out: queue, slots, lanes and cache.

- `dtypes`: the dtype in which a checkpoint answers
- `config`: the settings of an engine, and the opening of checkpoints with them
- `engine`: the queue, the order of turns and the futures
- `lanes`: the memory of all networks of an engine, with fewer slots if the device has less
- `lane`: one network's rows, stepped together
- `prediction`: predictions, and the interface of everything that makes them
- `cache`: one answer for equal examples
- `threads`: the rows of a step shared among CPU threads
- `transfers`: copies to a GPU and back that do not wait

May import `schemas`, `hrm.model`, `hrm.checkpoint` and `hrm.kernels`.
"""
