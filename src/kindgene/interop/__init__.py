"""To other software and back: exports that are checked by running them, and the import of dense checkpoints."""
