"""All that talks to MLflow; the only importer of it."""
