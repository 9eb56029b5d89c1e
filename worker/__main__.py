"""`python -m worker`: the same as the command `sqe-hrm`."""

from worker.cli import main

main()
