"""The comparison report: rows of runs in, tables and pictures out."""
