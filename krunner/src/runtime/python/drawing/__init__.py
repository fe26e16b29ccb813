"""Installed by krunner: pictures that a web console draws, one command at a time.

    from ai.backend.kernel.python.drawing import Canvas, Colors

    canvas = Canvas(400, 300)
    canvas.circle(200, 150, 50, border=Colors.Blue, fill=Colors.Yellow)
    canvas.show()
"""

from .canvas import Canvas
from .color import Color, Colors
from .turtle import Turtle, Vec2D

__all__ = ("Canvas", "Color", "Colors", "Turtle", "Vec2D")
