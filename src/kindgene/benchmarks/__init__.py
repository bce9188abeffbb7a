"""Measurements of speed and memory: what is compared takes turns within one run (`kindgene bench`)."""
