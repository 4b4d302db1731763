"""A reader of pickles that calls nothing, for files that somebody may have changed.

`pickle` imports and calls what a file names, and makes as many objects as it says; even with harmless names a few hundred
bytes keep it busy for years (the hash of a tuple that contains the same tuple twice, which contains … takes 2^depth steps).
Here the opcodes are followed, and what a file asks to call is written down instead of called.
"""

from __future__ import annotations

import pickletools
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from retract.errors import RetractError

__all__ = ["Call", "Name", "read", "shown"]

_DEPTH = 100
"""How deep values may be nested."""
_BITS = 1024
"""How long a whole number may be."""
_KEY = 16
"""How many values a tuple that is a key may have."""

_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE", "BINUNICODE8"),
}
"""Opcodes whose argument is the value that they push."""
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GET, _PUT = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}
_HASHING = {"set", "frozenset", "Counter", "OrderedDict"}
"""Names of what takes the hash of everything in its argument."""
_NOTHING = {"PROTO", "FRAME", "STOP"}


class Name(NamedTuple):
    """Something that a pickle wants to import."""

    module: str
    name: str


@dataclass(eq=False)
class Call:
    """A call that a pickle asks for, and that was not made."""

    name: Name | None
    """None for a persistent id, which is the one argument then."""
    args: tuple[Any, ...]
    state: Any = None
    """What the pickle wants to give to the object by ``__setstate__``."""
    items: dict[Any, Any] = field(default_factory=dict)
    """What it wants to set by ``object[key] = value``."""


def read(content: bytes, kind: str, allowed: Callable[[Name], bool], most: int) -> Any:
    """The value of the pickle `content`, with a `Call` wherever it asks for one. Text of Python 2 comes as str, by latin-1.

    Args:
        content: the whole pickle.
        kind: what it should be, for messages that follow "no file of".
        allowed: tells whether a pickle of this kind may mention a name.
        most: how many opcodes it may have, and how many values, those that are mentioned repeatedly counted repeatedly.

    Raises `RetractError`, in words that follow the name of a file, if the pickle is cut off or none at all, names what is not
    allowed, is too long or nested too deeply, or uses a key that is no plain value.
    """
    machine = _Machine(kind, allowed)
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if number == most:
                raise RetractError(
                    f"has more than {most:,} opcodes, the most that a file of {kind} needs; fetch it again"
                )
            machine.follow(opcode.name, argument)
        result = machine.stack.pop()
    except RetractError:
        raise
    except Exception as error:  # what a foreign file makes of the opcodes is anybody's guess
        told = shown(f"{type(error).__name__}: {error}")
        raise RetractError(f"is cut off, or is not a pickle ({told}); fetch it again") from error
    _check_size(result, most)
    return result


def shown(value: Any) -> str:
    """`value` in a message: one short line, whatever it is."""
    if not isinstance(value, str):
        return reprlib.repr(value)
    short = value if len(value) <= 200 else f"{value[:200]} …"
    return short if short.isprintable() else ascii(short)


_CONTAINERS = (list, tuple, dict, Call)


class _Machine:
    """The stack, its marks, and the memo."""

    def __init__(self, kind: str, allowed: Callable[[Name], bool]) -> None:
        self.kind, self.allowed = kind, allowed
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def follow(self, opcode: str, argument: Any) -> None:
        """One opcode."""
        stack = self.stack
        if opcode in _VALUES:
            if type(argument) is int and argument.bit_length() > _BITS:
                raise RetractError(
                    f"holds a number of {argument.bit_length():,} bits, not at most {_BITS}; do not use it"
                )
            stack.append(argument)
        elif opcode in _PUT:
            self.memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in _GET:
            stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.marks.append(len(stack))
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode not in _NOTHING:
            self.build(opcode, argument)

    def build(self, opcode: str, argument: Any) -> None:
        """The opcodes that put values together."""
        stack = self.stack
        if opcode in ("APPEND", "APPENDS"):
            values = self.since_mark() if opcode == "APPENDS" else [stack.pop()]
            _of_type(stack[-1], list).extend(values)
        elif opcode in ("SETITEM", "SETITEMS"):
            values = self.since_mark() if opcode == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _set(stack[-1].items if isinstance(stack[-1], Call) else _of_type(stack[-1], dict), values)
        elif opcode in _TUPLES:
            count = _TUPLES[opcode]
            stack[-count:] = [tuple(stack[-count:])]
        elif opcode == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif opcode == "LIST":
            stack.append(self.since_mark())
        elif opcode == "DICT":
            values, made = self.since_mark(), dict[Any, Any]()
            _set(made, values)
            stack.append(made)
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            self.name(argument.partition(" ")[::2] if opcode == "GLOBAL" else (stack.pop(-2), stack.pop()))
        elif opcode in ("REDUCE", "NEWOBJ"):
            args, name = _of_type(stack.pop(), tuple), _of_type(stack.pop(), Name)
            if name.name in _HASHING:
                _check_keys(key for arg in args for key in arg)
            # Bytes, where Python 3 wrote a pickle that Python 2 can read.
            bytes_ = name == ("_codecs", "encode") and bool(args) and isinstance(args[0], str)
            stack.append(args[0] if bytes_ else Call(name, args))
        elif opcode == "BINPERSID":
            stack.append(Call(None, (stack.pop(),)))
        elif opcode == "BUILD":
            state = stack.pop()
            _of_type(stack[-1], Call).state = state
        else:
            raise RetractError(
                f"holds more than plain values: its opcode {opcode} was not followed. Do not use the file"
            )

    def since_mark(self) -> list[Any]:
        """What has been pushed since the last mark, taken off the stack."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def name(self, parts: tuple[Any, ...]) -> None:
        """Push a name, if it is allowed."""
        name = Name(*(_of_type(part, str) for part in parts))
        if not self.allowed(name):
            raise RetractError(
                f"asks for {shown('.'.join(name))}, which no file of {self.kind} contains; it was not executed. Do not use the file"
            )
        self.stack.append(name)


def _of_type(value: Any, wanted: type) -> Any:
    if not isinstance(value, wanted):
        raise TypeError(f"{type(value).__name__} in place of {wanted.__name__}")
    return value


def _set(target: dict[Any, Any], values: list[Any]) -> None:
    _check_keys(values[::2])
    target.update(zip(values[::2], values[1::2], strict=True))


def _check_keys(keys: Iterable[Any]) -> None:
    for key in keys:
        parts = key if type(key) is tuple and len(key) <= _KEY else (key,)
        if not all(isinstance(part, (str, bytes, int, float, type(None))) for part in parts):
            raise RetractError(f"has a {type(key).__name__} of other than plain values as a key. Do not use the file")


def _check_size(value: Any, most: int) -> None:
    """Counts as whoever walks through the value would, so a container that contains itself has no end."""
    count, todo = 0, list[tuple[Any, int]]([([value], 0)])
    while todo:
        one, depth = todo.pop()
        if isinstance(one, Call):
            inner = [*one.args, one.state, *one.items.keys(), *one.items.values()]
        else:
            inner = [*one, *one.values()] if isinstance(one, dict) else one
        count += len(inner)
        if depth == _DEPTH or count > most:
            raise RetractError(
                f"holds values that are nested more than {_DEPTH} deep, or more than {most:,} of them. Do not use the file"
            )
        todo += [(part, depth + 1) for part in inner if isinstance(part, _CONTAINERS)]
