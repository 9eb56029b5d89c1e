"""From accepted examples to a checkpoint.

- `options`: the options of a run, typed
- `setup`: data, network and record become a run
- `trainer`: one optimiser step
- `losses`: the reference's losses
- `fit`: steps and measurements until training is over
- `examples`: files become training examples
- `answers`: prompts with several accepted answers, and contradictions
- `run`: a run's folder
- `recording`: the figures of a checkpoint that was trained before they were recorded
- `state`: everything that resuming needs
- `plot`: the training curves

May import `schemas`, `hrm.data`, `hrm.model`, `hrm.checkpoint`, `hrm.kernels` and
`hrm.evaluation`; neither `hrm.inference` nor `hrm.ensemble`.
"""
