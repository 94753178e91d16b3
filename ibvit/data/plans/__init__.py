"""What an epoch shows, as pure functions of the seed: order, crops, flips, RandAugment."""
