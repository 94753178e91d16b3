"""The files of a data set: an ImageNet-style tree of images, read, checked and made."""
