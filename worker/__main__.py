"""`python -m worker`: the same as the command `sqe-hrm`."""

from worker.cli.main import main

main()
