"""The comparison report: training runs in, tables, statistics and plots out."""
