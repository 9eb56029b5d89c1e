"""Runs draw no plots, except in the tests of a run's folder."""

from tests.support.commands import no_plots

__all__ = ["no_plots"]
