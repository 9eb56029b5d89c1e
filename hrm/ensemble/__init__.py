"""Several checkpoints as one model.

- `ensemble`: the ensemble: its rules of membership, its name and digest, its opening
- `join`: one prediction from those of all members
- `combiners`: one sequence of tokens from the logits of all members
- `stacking`: a combiner fitted on calibration examples
- `report`: an ensemble beside each of its members

May import every other package of `hrm` except `hrm.training`.
"""
