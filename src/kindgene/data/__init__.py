"""Data sets as plain tensors: images in [-1, 1], integer labels, class names."""
