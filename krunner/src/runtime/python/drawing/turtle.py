"""A turtle that walks over a canvas and leaves a line. It starts in the middle, heading right."""

import math

from .color import Color, Colors

_TRACE = Color(255, 0, 0, 128)
_SHELL = Color(255, 200, 200)


class Vec2D(tuple):
    """A vector in the plane."""

    def __new__(cls, x, y):
        return super().__new__(cls, (x, y))

    def __add__(self, other):
        return Vec2D(self[0] + other[0], self[1] + other[1])

    def __sub__(self, other):
        return self + -Vec2D(*other)

    def __neg__(self):
        return Vec2D(-self[0], -self[1])

    def __mul__(self, other):
        """With a vector the inner product, with a number the multiple."""
        if isinstance(other, tuple):
            return self[0] * other[0] + self[1] * other[1]
        return Vec2D(self[0] * other, self[1] * other)

    __rmul__ = __mul__

    def __abs__(self):
        return math.hypot(*self)

    def rotate(self, angle):
        """Turned by so many degrees, counterclockwise where y points up."""
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        return Vec2D(self[0] * c - self[1] * s, self[1] * c + self[0] * s)

    def __getnewargs__(self):
        return tuple(self)

    def __repr__(self):
        return "({:.2f},{:.2f})".format(*self)


class Turtle:
    """Distances are in pixels, angles in degrees; 0 is up, 90 is right."""

    def __init__(self, canvas):
        self.canvas = canvas
        self.pen = True
        self.angle = 90
        self.points = [(canvas.width / 2, canvas.height / 2)]
        self.cursor = canvas.triangle(
            *self.points[0], 12, 18, border=Colors.Red, fill=_SHELL, angle=self.angle
        )

    def _walk_to(self, x, y):
        self.canvas.begin_group()
        if self.pen:
            self.canvas.line(*self.points[-1], x, y, color=_TRACE)
        self.cursor.set_x(x)
        self.cursor.set_y(y)
        self.canvas.end_group()
        self.points.append((x, y))

    def forward(self, amt):
        x, y = self.points[-1]
        heading = math.radians(self.angle)
        self._walk_to(x + math.sin(heading) * amt, y - math.cos(heading) * amt)

    def left(self, deg):
        self.right(-deg)

    def right(self, deg):
        self.cursor.rotate(deg)
        self.angle += deg

    def pos(self):
        """Where it is, counted from where it started."""
        return Vec2D(*self.points[-1]) - self.points[0]

    def setpos(self, x, y=None):
        """Walks straight to a place, counted from where it started: two numbers, or a pair."""
        x, y = x if y is None else (x, y)
        start_x, start_y = self.points[0]
        self._walk_to(start_x + x, start_y + y)

    def penup(self):
        self.pen = False

    def pendown(self):
        self.pen = True


__all__ = ("Turtle", "Vec2D")
