"""Tables of plain text, as commands print them."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines with columns of equal width.

    Args:
        rows: of equally many cells; the first one is the heading.
        left: so many columns are text and stand to the left, the others are numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligns = "<" * left + ">" * (len(widths) - left)
    return [
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, aligns, widths, strict=True)).rstrip()
        for row in rows
    ]
