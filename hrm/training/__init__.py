"""From accepted examples to a checkpoint.

- `options`: the options of a run, typed
- `setup`: messages, network and record become a run
- `messages`: the messages of a run, with rows for their answers
- `converting`: how a run converts its messages
- `trainer`: one optimiser step
- `noise`: noise on prompts
- `losses`: the reference's losses
- `fit`: steps and measurements until training is over
- `plan`: the length of a run, by its number of examples
- `meter`: figures of a sample while training, and of everything at the end
- `stop`: a request to stop
- `examples`: files become training examples
- `answers`: prompts with several accepted answers, and contradictions
- `notes`: what a run will not do, said before it starts
- `run`: trains, and writes the folder of the run
- `folder`: the folder of a run, claimed and read
- `replay`: what a run takes over from the checkpoint that it starts from
- `recording`: pairs and figures of a checkpoint that was trained before they were recorded
- `state`: everything that resuming needs
- `seeds`: several runs that differ in their seed
- `plot`: the training curves

May import `schemas`, `hrm.data`, `hrm.model`, `hrm.checkpoint`, `hrm.kernels` and
`hrm.evaluation`; neither `hrm.inference` nor `hrm.ensemble`.
"""
