"""The command `sqe-hrm`: parses, calls one function, prints.

- `main`: finds the subcommand, and turns its errors into one line
- `commands`: one module for each subcommand
- `options`: the options that several commands share, and the device
- `training_options`: the options of a training run
- `files`: files that commands read and write
- `outcome_file`: the file of outcomes that `sqe-hrm submit` writes
- `serving`: the evaluator that a worker's options name
- `tables`: what commands print

May import everything.
"""
