"""Tables: text with aligned columns, and Markdown."""

from collections.abc import Sequence


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out rows under headings: words to the left, numbers to the right.

    Args:
      headings: one per column.
      rows: cells as text, as many per row as there are headings.

    Example:
      >>> print(text_table(["name", "size"], [["a", "1,024"], ["bcd", "8"]]))
      name   size
      ----  -----
      a     1,024
      bcd       8
    """
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(_is_number(cell) for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        laid = [
            f"{cell:>{width}}" if side else f"{cell:<{width}}"
            for cell, width, side in zip(cells, widths, right, strict=True)
        ]
        return "  ".join(laid).rstrip()

    return "\n".join([line(headings), line(["-" * width for width in widths]), *map(line, rows)])


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a table in Markdown.

    Example:
      >>> print(markdown(["name", "size"], [["a", "1,024"], ["bcd", "8"]]))
      | name | size |
      |---|---:|
      | a | 1,024 |
      | bcd | 8 |
    """
    columns = list(zip(headings, *rows, strict=True))
    rule = "|".join("---:" if all(map(_is_number, column[1:])) else "---" for column in columns)
    return "\n".join([f"| {' | '.join(headings)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])


def _is_number(cell: str) -> bool:
    return cell in ("", "–") or cell[0].isdigit()
