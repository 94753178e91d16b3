"""Decode once: pictures kept between epochs, on a GPU, in memory or in a pack on disk."""
