"""What the commands print: one module for each report, and `style` for all. Computes no figure."""
