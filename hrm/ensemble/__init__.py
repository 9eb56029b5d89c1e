"""Several checkpoints as one model.

- `ensemble`: who may join, what it is called, how it answers
- `join`: the members' predictions become one, in one engine
- `combiners`: several members' logits become one sequence of tokens
- `stacking`: a combiner fitted on calibration examples
- `report`: an ensemble beside each of its members

May import every other package of `hrm` but `hrm.training`.
"""
