"""Networks as torch modules, and their pretrained weights."""
