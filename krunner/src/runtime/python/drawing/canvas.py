"""A canvas remembers what is drawn as commands, and sends those that are new each time it is shown.

A command is a list: the canvas's number, a verb, and what the verb takes. Shapes are numbered, so that they can
be changed after they have been shown.
"""

import itertools

from .color import Colors
from .encoding import encode_commands
from .turtle import Turtle

MIME = "application/x-sorna-drawing"

_numbers = itertools.count()

# What `stroke`, `fill` and the setters change, for each kind of shape.
_CHANGES = {
    "line": {"x1", "y1", "x2", "y2", "color"},
    "circle": {"x", "y", "radius", "border", "fill"},
    "rect": {"x", "y", "border", "fill"},
    "triangle": {"x", "y", "border", "fill"},
}


class DrawingObject:
    """A shape on a canvas. What its kind does not have is not changed."""

    def __init__(self, canvas, number, kind):
        self._canvas = canvas
        self._id = number
        self._type = kind

    def _change(self, what, value):
        if what in _CHANGES[self._type]:
            self._canvas._add("update", self._id, what, value)

    def set_x(self, x):
        self._change("x", x)

    def set_y(self, y):
        self._change("y", y)

    def set_x1(self, x):
        self._change("x1", x)

    def set_y1(self, y):
        self._change("y1", y)

    def set_x2(self, x):
        self._change("x2", x)

    def set_y2(self, y):
        self._change("y2", y)

    def set_radius(self, r):
        self._change("radius", r)

    def rotate(self, a):
        """Turns it by so many degrees."""
        self._canvas._add("update", self._id, "rotate", a)

    def set_angle(self, a):
        """Turns it to so many degrees."""
        self._canvas._add("update", self._id, "angle", a)

    def stroke(self, color):
        self._change("color" if self._type == "line" else "border", color.to_hex())

    def fill(self, color):
        self._change("fill", color.to_hex())


class Canvas:
    """A picture of so many pixels; (0, 0) is its upper left corner."""

    def __init__(self, width, height, bgcolor=Colors.White, fgcolor=Colors.Black):
        self.width, self.height = width, height
        self.bgcolor, self.fgcolor = bgcolor, fgcolor
        self._id = next(_numbers)
        self._object_numbers = itertools.count()
        self._commands = []
        self._add("canvas", width, height, bgcolor.to_hex(), fgcolor.to_hex())

    def _add(self, *command):
        self._commands.append((self._id,) + command)

    def _draw(self, kind, *properties):
        number = next(self._object_numbers)
        self._add("obj", number, (kind,) + properties)
        return DrawingObject(self, number, kind)

    def show(self):
        """Sends new drawing commands to the clients."""
        # What cannot be sent stays to be sent.
        _publish(encode_commands(self._commands))
        self._commands = []

    update = show

    def create_turtle(self):
        return Turtle(self)

    def stop_animation(self):
        """From here on, what is drawn appears at once."""
        self._add("stop-anim")

    def resume_animation(self):
        self._add("resume-anim")

    def begin_group(self):
        """What follows appears together."""
        self._add("begin-group")

    def end_group(self):
        self._add("end-group")

    def begin_fill(self, c):
        """The lines that follow are the outline of an area of that colour."""
        self._add("begin-fill", c.to_hex())

    def end_fill(self):
        self._add("end-fill")

    def background_color(self, c):
        self.bgcolor = c
        self._add("bgcolor", c.to_hex())

    def stroke_color(self, c):
        """Of shapes that name none."""
        self.fgcolor = c
        self._add("fgcolor", c.to_hex())

    def line(self, x0, y0, x1, y1, color=None):
        return self._draw("line", x0, y0, x1, y1, (color or self.fgcolor).to_hex())

    def circle(self, x, y, radius, border=None, fill=None, angle=0):
        return self._draw("circle", x, y, radius, *self._colors(border, fill), angle)

    def rectangle(self, left, top, width, height, border=None, fill=None, angle=0):
        return self._draw("rect", left, top, width, height, *self._colors(border, fill), angle)

    def triangle(self, left, top, width, height, border=None, fill=None, angle=0):
        return self._draw("triangle", left, top, width, height, *self._colors(border, fill), angle)

    def _colors(self, border, fill):
        return (border or self.fgcolor).to_hex(), (fill or Colors.Transparent).to_hex()


def _publish(text):
    try:
        from IPython import get_ipython
        from IPython.display import publish_display_data
    except ImportError:
        get_ipython = lambda: None  # noqa: E731
    if get_ipython() is None:
        raise RuntimeError("a drawing can be shown in query mode only, where a Jupyter kernel runs the code")
    publish_display_data({MIME: text, "text/plain": "(a drawing)"})


__all__ = ("Canvas",)
