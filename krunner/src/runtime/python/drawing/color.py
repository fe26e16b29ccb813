"""Colours: red, green, blue and opacity, from 0 to 255 each."""

import enum


class Color:
    """A colour. Equal parts make equal colours."""

    def __init__(self, red, green, blue, alpha=255):
        for name, part in (("red", red), ("green", green), ("blue", blue), ("alpha", alpha)):
            if not 0 <= part <= 255:
                raise ValueError("{} is {!r}, not a number from 0 to 255".format(name, part))
        self.red, self.green, self.blue, self.alpha = int(red), int(green), int(blue), int(alpha)

    @staticmethod
    def from_hex(value):
        """`#rrggbbaa`, or `#rrggbb` for an opaque one; with or without the `#`."""
        digits = value.lstrip("#")
        if len(digits) not in (6, 8):
            raise ValueError("{!r} is no colour like '#ff8800' or '#ff8800ff'".format(value))
        return Color(*bytearray.fromhex(digits))

    @staticmethod
    def from_rgba(value):
        """Three or four numbers."""
        return Color(*value)

    @staticmethod
    def from_bytes(value):
        """Four bytes."""
        red, green, blue, alpha = bytearray(value)
        return Color(red, green, blue, alpha)

    def _parts(self):
        return self.red, self.green, self.blue, self.alpha

    def to_hex(self, include_alpha=True):
        parts = self._parts() if include_alpha else self._parts()[:3]
        return "#" + "".join("{:02x}".format(part) for part in parts)

    def to_bytes(self):
        return bytes(bytearray(self._parts()))

    def to_rgba(self):
        return "rgba({},{},{},{})".format(*self._parts())

    def __eq__(self, other):
        return self._parts() == other._parts() if isinstance(other, Color) else NotImplemented

    def __hash__(self):
        return hash(self._parts())

    def __repr__(self):
        return "Color({}, {}, {}, {})".format(*self._parts())


class Colors(Color, enum.Enum):
    """The usual ones, by name."""

    Transparent = (255, 255, 255, 0)
    Black = (0, 0, 0)
    Gray = (128, 128, 128)
    White = (255, 255, 255)
    Red = (255, 0, 0)
    Green = (0, 255, 0)
    Blue = (0, 0, 255)
    Yellow = (255, 255, 0)
    Magenta = (255, 0, 255)
    Cyan = (0, 255, 255)


__all__ = ("Color", "Colors")
