"""Data sets by URI: their sources, files, digests, splits and batches."""
