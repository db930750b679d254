"""cnn-jobs: batch training of small convolutional networks, tracked in MLflow."""

__version__ = "0.1.0"
