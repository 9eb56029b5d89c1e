"""The subcommands of `sqe-hrm`, one module each: parse, call one function, print."""
