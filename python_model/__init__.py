"""The thin ARGUS reference model: data, layers, losses, training, evaluation and serving on top of argus_kernels."""
