"""Loaders: plans and files to batches on the device."""
