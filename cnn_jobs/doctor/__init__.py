"""Checks of what a training needs: data, MLflow, keys, device, disk; each finding with advice."""
