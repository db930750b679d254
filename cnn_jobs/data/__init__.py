"""Data sets by URI: sources, digest, split, order, batches."""
