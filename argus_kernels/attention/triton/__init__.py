"""The Triton kernels of attention over packed histories; importing this package does not import triton."""
