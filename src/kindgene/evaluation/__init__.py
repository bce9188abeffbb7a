"""Measuring samples: quality as a figure, never as a look."""
