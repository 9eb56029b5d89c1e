"""Commands are invoked in this process, so every module starts without a GPU."""

from tests.support.commands import no_gpu

__all__ = ["no_gpu"]
