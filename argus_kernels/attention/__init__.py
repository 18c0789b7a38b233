"""What causal, HSTU and decode attention share: arguments, tiles of the definition, relative biases, Triton kernels."""
