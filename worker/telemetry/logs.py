"""The worker's log: one line per event on standard error, and tracebacks only for its own bugs.

Knows logging. No log line may show a message's text.
"""

import logging

NOISY = ("celery", "kombu", "amqp")
"""Libraries whose warnings matter, and whose tracebacks say no more than their last line."""


class LineFormatter(logging.Formatter):
    """A formatter that puts each record of a library on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; only this project's own records keep their traceback."""
        if record.name.partition(".")[0] in NOISY:
            record = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
            record.msg, record.args = " ".join(record.getMessage().split()), ()
        return super().format(record)


def configure_logging() -> None:
    """Send this process's log to standard error, at level INFO."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
