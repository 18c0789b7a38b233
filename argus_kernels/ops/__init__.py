"""One room an op. The rooms are listed where their functions are exported: `argus_kernels/__init__.py`."""
