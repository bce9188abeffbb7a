"""How lines of the command line count."""


def number_of_classes(count: int) -> str:
    """``1 class``, ``10,000 classes``."""
    return "1 class" if count == 1 else f"{count:,} classes"
