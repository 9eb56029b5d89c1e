"""The output of the commands: one module for each report, and `style` for all.

Computes no figure.
"""
