"""The training loop and its parts. Imports neither click, nor MLflow, nor Kubernetes."""
