"""The data sets that an option can name, and a recipe for each."""
