"""Tables and pictures of results: rows in, files out. Knows neither MLflow nor the network that was trained."""
