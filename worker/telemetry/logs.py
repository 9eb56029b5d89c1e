"""A worker's log: one line an event on standard error, and a traceback only for a bug of its own.

Knows logging. Nothing that logs here may show a message's text.
"""

import logging

NOISY = ("celery", "kombu", "amqp")
"""Libraries whose warnings matter and whose tracebacks say no more than their last line."""


class LineFormatter(logging.Formatter):
    """Keeps what a library logs on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; for this project's own records with the traceback they carry."""
        if record.name.partition(".")[0] in NOISY:
            record = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
            record.msg, record.args = " ".join(record.getMessage().split()), ()
        return super().format(record)


def configure_logging() -> None:
    """Send this process's log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
