"""The models: what every one offers, the two encoders and the simplified one, their losses and optimisers."""
