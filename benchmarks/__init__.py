"""What is measured, and against what: ``python -m benchmarks.run``, see docs/performance.md."""
