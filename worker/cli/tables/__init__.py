"""What the commands print: one module for each report. Computes no figure."""
