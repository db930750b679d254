"""Pictures of what a network has learned: filters, activations, and where it looks. Knows neither click nor MLflow."""
