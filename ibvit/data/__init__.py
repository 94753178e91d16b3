"""Data sets and loaders: a batch and its index, a pure function of seed, epoch and step."""
