"""The command line: one thin file a verb over the public functions."""
