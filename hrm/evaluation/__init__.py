"""From predictions to verdicts, figures and a choice.

- `evaluator`: the verdict of one message
- `check`: the check of a message's texts beside the model
- `known`: the pairs with which an evaluator tests itself
- `answers`: the nearest of several accepted answers
- `scoring`: the comparison of a prediction with its target
- `baselines`: guesses that never look at the input
- `lookup`: tables of training pairs as baselines
- `coverage`: whether every training pair was evaluated
- `statistics`: shares, intervals, histograms
- `paired`: tests and intervals for two predictors on the same examples
- `outcomes`: each two predictors on the same distinct examples
- `measurement`: a network's figures on a set of examples
- `recorded`: these figures, as a checkpoint records them
- `run`: the evaluation of a whole file
- `counters`: figures of many verdicts in constant memory
- `report`: the form of an evaluation's report
- `drift`: the changes of accepted completions that an evaluator notices
- `comparison`: the weights of several checkpoints, tensor by tensor
- `recommendation`: a choice among several checkpoints
- `promotion`: what is lost if one checkpoint takes the place of another

May import `schemas`, `hrm.data`, `hrm.model`, `hrm.checkpoint` and `hrm.inference`.
"""
