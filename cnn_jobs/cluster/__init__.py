"""Kubernetes Jobs: manifests rendered from the registry of tasks; submit, status, logs and cancel."""
