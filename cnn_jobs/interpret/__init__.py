"""What a network has learned, in pictures and measurements: filters, activations, and what its answer depends on."""
