"""Commands are invoked in this process, so each module starts without a GPU, and draws no plots."""

from tests.support.commands import no_gpu, no_plots

__all__ = ["no_gpu", "no_plots"]
