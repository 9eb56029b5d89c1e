"""From predictions to verdicts, figures and a choice.

- `evaluator`: one message to one verdict
- `scoring`: a prediction against its target
- `baselines`: what guessing reaches
- `statistics`: shares, intervals, histograms
- `measurement`: a network's figures on a set of examples
- `run`: a whole file through an evaluator
- `counters`: figures of many verdicts in constant memory
- `report`: the figures of an evaluation
- `comparison`: checkpoints tensor by tensor
- `recommendation`: which of several checkpoints to take

May import `schemas`, `hrm.data`, `hrm.model`, `hrm.checkpoint` and `hrm.inference`.
"""
