"""Task 1 of the course: arithmetic of convolutional networks."""
