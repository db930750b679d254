"""An MLflow server on this machine, for ``make local-run`` and the tests."""
