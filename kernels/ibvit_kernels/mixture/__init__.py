"""Sums over the components of Gaussian mixtures, the inner loop of the information estimator."""
