"""The command `sqe-hrm`: parses, calls one function, prints.

- `main`: finds the subcommand, and turns its errors into one line
- `commands`: one module for each subcommand
- `tables`: what commands print

May import everything.
"""
