"""The training loop and what it stands on. Knows neither click, nor MLflow, nor Kubernetes."""
