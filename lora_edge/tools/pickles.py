"""A pickle reader that cannot run anything.

A pickle is a program for a small stack machine (the standard library's `pickletools` documents every instruction).
This machine knows the instructions that containers, strings and numbers need and no other, and a name of the pickle
is looked up in a table that the caller gives, never imported. It costs at most what its bounds say.
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

MAX_BYTES = 2**23  # of one pickle; that of a whole SDXL checkpoint takes under 1 MiB
MAX_INSTRUCTIONS = 500_000  # each makes at most one object; a tensor takes about 50
MAX_KEY = 2**31  # integers beyond it can be chosen so that a dict of them takes quadratic time
SHOWN = 100  # characters of a stranger's text that a message quotes

OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}

Persistent: TypeAlias = Callable[[Any], Any]


class Wrong(Exception):
    """What is wrong with a file, before the file's name is put in front."""


@dataclass(frozen=True)
class Maker:
    """A function or class that a pickle may ask for.

    `make` takes its arguments and has no effect but its result. It must take constant time: a pickle can ask for it
    with the same large argument again and again.
    """

    make: Callable[..., Any]


class Stateful(dict[Any, Any]):
    """A dict that a pickle may give attributes to."""

    def set_state(self, state: dict[Any, Any]) -> None:
        """Take the attributes without copying them, or raise `Wrong`."""
        raise NotImplementedError


def quoted(text: object) -> str:
    """A stranger's text as a message may show it: short, without control characters."""
    shown = ascii(str(text)[: SHOWN + 1])[1:-1]
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."


def read_pickle(file: BinaryIO, known: Mapping[str, Any], persistent: Persistent) -> Any:
    """The value that a pickle describes; the file is left behind its last byte.

    Args:
        file: at the first byte of the pickle; should hold at most MAX_BYTES, as it may be read to its end.
        known: "module name" of a global -> what it becomes: a `Maker`, or a value.
        persistent: the argument of a persistent id -> what it becomes.

    Raises:
        Wrong: not a whole pickle, too large, or it asks for something that is not in `known`.
    """
    machine = _Machine(known, persistent)
    try:
        for _ in range(MAX_INSTRUCTIONS):
            opcode = OPCODES.get(code := file.read(1))
            if opcode is None:
                what = f"has the unknown instruction {quoted(code)}" if code else "has no end"
                raise Wrong(f"is not a whole pickle: it {what}")
            if opcode.name == "STOP":
                return machine.result()
            step = STEPS.get(opcode.name)
            if step is None:  # before its argument is read
                raise Wrong(f"uses the pickle instruction {opcode.name}, which no tensor needs; nothing was run")
            step(machine, opcode.arg.reader(file) if opcode.arg else None)
    except (ValueError, OverflowError, struct.error) as reason:
        raise Wrong(f"is not a whole pickle: {quoted(reason)}") from None
    except (IndexError, KeyError):
        raise Wrong("is not a whole pickle: it takes what it never made") from None
    raise Wrong(f"is a pickle of more than {MAX_INSTRUCTIONS} instructions; no adapter needs that many")


class _Machine:
    """The stack, the stacks below the open marks, and the memo."""

    def __init__(self, known: Mapping[str, Any], persistent: Persistent) -> None:
        self.known = known
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def last(self, count: int) -> tuple[Any, ...]:
        made = tuple(self.pop() for _ in range(count))
        return made[::-1]

    def result(self) -> Any:
        if self.below or len(self.stack) != 1:
            raise Wrong("is not a whole pickle: it leaves more or less than one value")
        return self.pop()

    def find(self, name: str) -> None:
        if name not in self.known:
            self.refuse(name)
        self.push(self.known[name])

    def refuse(self, name: str) -> None:
        raise Wrong(f"asks for {quoted(name.replace(' ', '.', 1))}, which is no plain tensor; nothing was run")

    def find_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise Wrong("names a global by something else than text; nothing was run")
        self.find(f"{module} {name}")

    def call(self) -> None:
        arguments, maker = self.pop(), self.pop()
        if not isinstance(maker, Maker) or type(arguments) is not tuple:
            raise Wrong(f"calls {_kind(maker)}, which is no way to make a tensor; nothing was run")
        try:
            self.push(maker.make(*arguments))
        except (TypeError, ValueError):
            raise Wrong("makes a tensor or container of something else than torch does") from None

    def build(self) -> None:
        state, made = self.pop(), self.stack[-1]
        if not isinstance(made, Stateful):
            raise Wrong(f"sets attributes of {_kind(made)}; nothing was run")
        if not isinstance(state, dict):
            raise Wrong("sets attributes to something else than a dict")
        made.set_state(state)

    def append(self, items: list[Any]) -> None:
        made = self.stack[-1]
        if type(made) is not list:
            raise Wrong(f"appends to {_kind(made)}")
        made.extend(items)

    def set_items(self, items: list[Any]) -> None:
        made = self.stack[-1]
        if not isinstance(made, dict):
            raise Wrong(f"sets items of {_kind(made)}")
        made.update(pairs(zip(items[::2], items[1::2], strict=True)))

    def remember(self, index: int | None = None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]


def pairs(items: Any) -> dict[Any, Any]:
    """A dict of (key, value) pairs.

    Raises:
        Wrong: a key that is neither text nor an integer below MAX_KEY in size.
    """
    made: dict[Any, Any] = {}
    for key, value in items:
        if type(key) is not str and not (type(key) is int and abs(key) < MAX_KEY):
            raise Wrong(f"has a dict with {_kind(key)} as key; text or a small integer belongs there")
        made[key] = value
    return made


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__.lower()}"


Step: TypeAlias = Callable[[_Machine, Any], None]


def _literal(value: Any) -> Step:
    return lambda machine, _: machine.push(value)


def _argument(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _tuple(count: int) -> Step:
    return lambda machine, _: machine.push(machine.last(count))


# The instructions of torch's own `weights_only` reader, and those that protocol 4 writes in their place.
STEPS: Mapping[str, Step] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.mark(),
    "NONE": _literal(None),
    "NEWTRUE": _literal(True),
    "NEWFALSE": _literal(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _argument),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"), _argument),
    "EMPTY_TUPLE": _literal(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.above_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.above_mark()),
    "ADDITEMS": lambda machine, _: machine.append(machine.above_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.last(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.above_mark()),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, index: machine.remember(index)),
    "MEMOIZE": lambda machine, _: machine.remember(),
    "GLOBAL": lambda machine, name: machine.find(name),
    "INST": lambda machine, name: machine.refuse(name),  # protocol 0 alone writes it; read to say what it asks for
    "STACK_GLOBAL": lambda machine, _: machine.find_on_stack(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.push(machine.persistent(machine.pop())),
}
