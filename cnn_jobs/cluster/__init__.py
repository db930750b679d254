"""The Kubernetes Jobs: what they are, made from the registry; their files, written and compared."""
