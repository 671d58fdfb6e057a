"""Digits and capitals as strokes.

OpenCV's own lettering changed between its major versions; strokes of our own look alike under all of them and can be
turned and scaled like any other line.
"""

from functools import lru_cache
from typing import TypeAlias

Stroke: TypeAlias = tuple[tuple[float, float], ...]

_WIDTH, _HEIGHT, _GAP = 4, 6, 2

# Strokes are parted by blanks; each pair of digits is a column from 0 to 4 and a row from 0 to 6, downwards.
_GLYPHS = {
    "0": "103041453616050110",
    "1": "012026 0646",
    "2": "01103041420646",
    "3": "01103041423313 3344453616 1605",
    "4": "36300444",
    "5": "400003334445361605",
    "6": "413010010516364544331304",
    "7": "00402316",
    "8": "103041423313020110 13040516364544 4433",
    "9": "051636454130100102133342",
    "A": "062046 1434",
    "B": "0030414233 03334445360600",
    "C": "4130100105163645",
    "D": "002041452606 0006",
    "E": "40000646 0333",
    "F": "400006 0333",
    "G": "41301001051636454323",
    "I": "2026 1030 1636",
    "J": "4045361605",
    "K": "0006 4003 1246",
    "L": "000646",
    "M": "0600234046",
    "N": "06004640",
    "O": "103041453616050110",
    "P": "060030414233 3303",
    "R": "06003041423303 2346",
    "S": "4130100102133344453616 1605",
    "T": "0040 2026",
    "U": "000516364540",
    "V": "002640",
    "X": "0046 4006",
    "-": "1333",
    ".": "2526",
    "/": "0640",
    "+": "0343 2125",
    " ": "",
}


@lru_cache(maxsize=128)
def text_strokes(text: str) -> tuple[Stroke, ...]:
    """Return the strokes of a text, centred on (0, 0), in units of its height.

    Args:
        text: Of the characters 0-9, most capitals, blank and ``- . / +``.

    Raises:
        KeyError: A character has no glyph.
    """
    advance = _WIDTH + _GAP
    left = (advance * len(text) - _GAP) / 2
    strokes: list[Stroke] = []
    for place, character in enumerate(text):
        for pairs in _GLYPHS[character].split():
            columns, rows = pairs[0::2], pairs[1::2]
            strokes.append(
                tuple(
                    ((int(column) + place * advance - left) / _HEIGHT, (int(row) - _HEIGHT / 2) / _HEIGHT)
                    for column, row in zip(columns, rows, strict=True)
                )
            )
    return tuple(strokes)
