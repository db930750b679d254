"""All communication with MLflow; only this package imports it."""
