"""Commands as base64 of msgpack (github.com/msgpack/msgpack/blob/master/spec.md), of which images have no module."""

import base64
import numbers
import struct


def encode_commands(commands):
    """Numbers, texts, bytes, lists, maps, None and truth values as a text."""
    packed = []
    _pack(commands, packed.append)
    return base64.b64encode(b"".join(packed)).decode("ascii")


def decode_commands(text):
    """The same, back; what was a tuple is a list."""
    value, rest = _unpack(base64.b64decode(text))
    if rest:
        raise ValueError("{} bytes follow the commands".format(len(rest)))
    return value


def _pack(value, put):
    if value is None:
        put(b"\xc0")
    elif isinstance(value, bool):
        put(b"\xc3" if value else b"\xc2")
    elif isinstance(value, numbers.Integral):
        put(_integer(int(value)))
    elif isinstance(value, numbers.Real):
        put(struct.pack(">Bd", 0xCB, float(value)))
    elif isinstance(value, str):
        data = value.encode("utf-8")
        put(_head(len(data), (0xA0, 32), (0xD9, 0xDA, 0xDB)) + data)
    elif isinstance(value, (bytes, bytearray)):
        put(_head(len(value), None, (0xC4, 0xC5, 0xC6)) + bytes(value))
    elif isinstance(value, (list, tuple)):
        put(_head(len(value), (0x90, 16), (None, 0xDC, 0xDD)))
        for item in value:
            _pack(item, put)
    elif isinstance(value, dict):
        put(_head(len(value), (0x80, 16), (None, 0xDE, 0xDF)))
        for key, item in value.items():
            _pack(key, put)
            _pack(item, put)
    else:
        raise TypeError("a drawing is made of numbers and texts; {!r} is neither".format(value))


def _integer(value):
    if -32 <= value < 128:
        return struct.pack(">b" if value < 0 else ">B", value)
    signed = value < 0
    for code, form in zip((0xD0, 0xD1, 0xD2, 0xD3) if signed else (0xCC, 0xCD, 0xCE, 0xCF), "bhiq"):
        bits = 8 * struct.calcsize(">" + form)
        if value >= -(1 << bits - 1) if signed else value < 1 << bits:
            return struct.pack(">B" + (form if signed else form.upper()), code, value)
    raise OverflowError("{} has more than 64 bits".format(value))


def _head(length, small, codes):
    """The first bytes of something of that length: of the small form, or with 8, 16 or 32 bits for the length."""
    if small is not None and length < small[1]:
        return struct.pack(">B", small[0] | length)
    for code, form in zip(codes, "BHI"):
        if code is not None and length < 1 << 8 * struct.calcsize(">" + form):
            return struct.pack(">B" + form, code, length)
    raise OverflowError("{} items are too many".format(length))


# Of each code: the form of the number that follows it, and what that number is.
_NUMBERS = {0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q", 0xD0: "b", 0xD1: "h", 0xD2: "i", 0xD3: "q", 0xCA: "f", 0xCB: "d"}
_LENGTHS = {
    0xD9: ("B", "text"), 0xDA: ("H", "text"), 0xDB: ("I", "text"),
    0xC4: ("B", "bytes"), 0xC5: ("H", "bytes"), 0xC6: ("I", "bytes"),
    0xDC: ("H", "list"), 0xDD: ("I", "list"),
    0xDE: ("H", "map"), 0xDF: ("I", "map"),
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def _unpack(data):
    """The first value, and the rest of the bytes."""
    code, rest = data[0], data[1:]
    if code < 0x80:
        return code, rest
    if code >= 0xE0:
        return code - 256, rest
    if code < 0xC0:
        kind = "map" if code < 0x90 else "list" if code < 0xA0 else "text"
        return _unpack_many(kind, code & (31 if kind == "text" else 15), rest)
    if code in _CONSTANTS:
        return _CONSTANTS[code], rest
    if code in _NUMBERS:
        return _number(_NUMBERS[code], rest)
    if code in _LENGTHS:
        form, kind = _LENGTHS[code]
        length, rest = _number(form, rest)
        return _unpack_many(kind, length, rest)
    raise ValueError("{:#04x} begins no value".format(code))


def _number(form, data):
    size = struct.calcsize(">" + form)
    return struct.unpack(">" + form, data[:size])[0], data[size:]


def _unpack_many(kind, length, data):
    if kind in ("text", "bytes"):
        piece, rest = data[:length], data[length:]
        return (piece.decode("utf-8") if kind == "text" else piece), rest
    items = []
    for _ in range(length * (2 if kind == "map" else 1)):
        item, data = _unpack(data)
        items.append(item)
    return (dict(zip(items[::2], items[1::2])) if kind == "map" else items), data


__all__ = ("decode_commands", "encode_commands")
