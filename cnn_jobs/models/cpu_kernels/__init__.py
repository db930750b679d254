"""Convolutions of our own for training on a CPU, behind one function."""
