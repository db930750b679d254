"""One run, from arguments to exit code: the only room that wires the others together."""
