"""What a training needs besides itself - data, MLflow, keys, device, disk -, checked, and what to do where it lacks."""
