"""The root of every error this project raises on purpose.

It lies in the lowest folder so that all others can derive from it. The command line prints such an
error as one line; everything else is a bug and keeps its traceback.
"""


class SQEHRMError(Exception):
    """What went wrong, with the input named and the mend said, in one line."""
