"""Data: one prepared format, the readers that make it, the synthetic music service, batches and splits."""
