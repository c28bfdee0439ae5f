"""Which axes of the weights and tensors of a model count the same channels."""
