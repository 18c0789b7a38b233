"""The models: their common interface, ARGUS, the HSTU encoder, the sequential baselines, losses and optimisers."""
