"""Networks as data: layers, sizes, parameters and costs; no torch."""
