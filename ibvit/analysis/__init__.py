"""From finished runs to the paper's results: one module an analysis, each with a small result object."""
