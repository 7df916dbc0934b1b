"""What ranks exchange in a step: the sum of their gradients, and the few words that travel with it."""
