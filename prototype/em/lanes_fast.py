"""Formulas on short vectors for numba: loops over components run in Python while it compiles, loops over capsules in numba.

`@unrolled` turns a Python function into one that a numba function can call. It gets `Memory` for an array, `Index` for a
whole number, `Sizes` for a tuple of tuples (whose lengths numba knows when it compiles), `Lanes` for a number; what it does
with them is emitted as instructions. LLVM picks the width: 16 lanes are one AVX-512, two AVX or four NEON registers."""

from __future__ import annotations

import inspect
import math
import sys

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

SINGLE, DOUBLE, WHOLE = ir.FloatType(), ir.DoubleType(), ir.IntType(32)
FLOATS = {'float32': SINGLE, 'float64': DOUBLE}
FLAGS = ['contract', 'nsz']  # a product and a sum may become one instruction; nothing is put into another order


class Lanes:
    "A vector of numbers, or one number; arithmetic on it emits one instruction. One number beside a vector is spread."

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    @property
    def size(self) -> int:  # 0: one number
        return getattr(self.value.type, 'count', 0)

    @property
    def kind(self):
        return getattr(self.value.type, 'element', self.value.type)

    def made(self, value) -> Lanes:
        return Lanes(self.builder, value)

    def constant(self, number: float, size: int | None = None) -> Lanes:
        "The same number in all lanes."
        return self.made(ir.Constant(self.kind, number)).spread(self.size if size is None else size)

    def spread(self, size: int) -> Lanes:
        if self.size == size:
            return self
        kind = ir.VectorType(self.kind, size)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), self.value, WHOLE(0))
        return self.made(first).shuffled(self.made(ir.Constant(kind, ir.Undefined)), [0] * size)

    def shuffled(self, other: Lanes, lanes: list[int]) -> Lanes:
        mask = ir.Constant(ir.VectorType(WHOLE, len(lanes)), lanes)
        return self.made(self.builder.shuffle_vector(self.value, other.value, mask))

    def pair(self, other: Lanes | float):
        other = other if isinstance(other, Lanes) else self.constant(other)
        size = max(self.size, other.size)
        return self.spread(size).value, other.spread(size).value

    def _apply(self, name, other, flags=FLAGS) -> Lanes:
        return self.made(getattr(self.builder, name)(*self.pair(other), flags=flags))

    def __add__(self, other):
        return self._apply('fadd', other)

    def __sub__(self, other):
        return self._apply('fsub', other)

    def __mul__(self, other):
        return self._apply('fmul', other)

    def __truediv__(self, other):
        return self._apply('fdiv', other)

    def __radd__(self, other):  # `sum` begins with 0
        return self if isinstance(other, int) and other == 0 else self + other

    __rmul__ = __mul__

    def __neg__(self):
        return self * -1.0

    def exactly(self, name: str, other: Lanes | float) -> Lanes:
        "An operation that is not fused with another."
        return self._apply(name, other, flags=[])

    def maximum(self, other: Lanes | float) -> Lanes:
        a, b = self.pair(other)
        return self.made(self.builder.select(self.builder.fcmp_ordered('>', a, b), a, b))

    def zero_where_below(self, bound: float, measure: Lanes) -> Lanes:
        below = self.builder.fcmp_ordered('<', *measure.pair(bound))
        return self.made(self.builder.select(below, self.constant(0.0).value, self.value))

    def total(self) -> Lanes:
        "The sum of all lanes."
        name = f'llvm.vector.reduce.fadd.v{self.size}{"f32" if self.kind == SINGLE else "f64"}'
        kind = ir.FunctionType(self.kind, [self.kind, self.value.type])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.made(self.builder.call(function, [ir.Constant(self.kind, -0.0), self.value], fastmath=['fast']))


def totals(vectors: list[Lanes]) -> Lanes:
    """Of as many vectors as they have lanes, a power of two, the sum of the lanes of each, as one vector: neighbours are
    added until one number of each is left."""
    n = vectors[0].size
    even, odd = list(range(0, 2 * n, 2)), list(range(1, 2 * n, 2))
    while len(vectors) > 1:
        vectors = [a.shuffled(b, even) + a.shuffled(b, odd) for a, b in zip(vectors[::2], vectors[1::2])]
    return vectors[0]


def exp(x: Lanes) -> Lanes:
    """e^x for x <= 0 to 2e-7 (float32) or 2e-15 (float64) of itself; zero below -60 or -700, so that no product of it is
    denormal, which would take a hundred times as long."""
    double = x.kind == DOUBLE
    mantissa, degree, bound = (52, 13, -700.0) if double else (23, 7, -60.0)
    high, low = (0.69314718036912381649, 1.90821492927058770002e-10) if double else (0.693359375, -2.12194440e-4)
    rounder = 1.5 * 2.0**mantissa  # whoever adds it rounds to a whole number, which then stands in the lowest bits
    inside = x.maximum(bound)
    shifted = (inside * math.log2(math.e)).exactly('fadd', rounder)
    k = shifted.exactly('fsub', rounder)
    rest = inside - k * high - k * low
    p = rest.constant(1 / math.factorial(degree))
    for n in reversed(range(degree)):
        p = p * rest + 1 / math.factorial(n)
    bits = ir.VectorType(ir.IntType(64 if double else 32), x.size)
    exponent = x.builder.shl(x.builder.bitcast(shifted.value, bits), ir.Constant(bits, [mantissa] * x.size))
    raised = x.builder.add(x.builder.bitcast(p.value, bits), exponent)
    return x.made(x.builder.bitcast(raised, x.value.type)).zero_where_below(bound, x)


class Index:
    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    def __add__(self, other: int) -> Index:
        return Index(self.builder, self.builder.add(self.value, ir.IntType(64)(other)))


class Memory:
    "An array's numbers, in the order in which they lie in memory."

    def __init__(self, context, builder, kind, value):
        self.builder, self.kind = builder, FLOATS[str(kind.dtype)]
        self.data = context.make_array(kind)(context, builder, value).data

    def _place(self, at: Index, size: int):
        place = self.builder.gep(self.data, [at.value])
        return self.builder.bitcast(place, ir.VectorType(self.kind, size).as_pointer()) if size else place

    def load(self, at: Index, size: int = 0) -> Lanes:
        loaded = self.builder.load(self._place(at, size))
        loaded.align = 4 if self.kind == SINGLE else 8
        return Lanes(self.builder, loaded)

    def numbers(self, at: Index, count: int) -> list[Lanes]:
        return [self.load(at + k) for k in range(count)]

    def rows(self, at: Index, count: int, size: int) -> list[Lanes]:
        return [self.load(at + k * size, size) for k in range(count)]

    def store(self, at: Index, number: Lanes):
        stored = self.builder.store(number.value, self._place(at, number.size))
        stored.align = 4 if self.kind == SINGLE else 8


class Sizes(tuple):
    "Lengths of the tuples in a tuple."


def unrolled(formula):
    "A function for numba to call, from one that emits instructions."

    def typed(typing, *kinds):
        def emit(context, builder, signature, values):
            made = []
            for kind, value in zip(signature.args, values):
                if isinstance(kind, types.Array):
                    made.append(Memory(context, builder, kind, value))
                elif isinstance(kind, types.BaseTuple):
                    made.append(Sizes(part.count for part in kind))
                elif isinstance(kind, types.Integer):
                    made.append(Index(builder, context.cast(builder, value, kind, types.int64)))
                else:
                    made.append(Lanes(builder, value))
            formula(*made)
            return context.get_dummy_value()

        return types.void(*kinds), emit

    names = ', '.join(inspect.signature(formula).parameters)  # numba wants them one by one
    space = {'typed': typed}
    exec(f'def {formula.__name__}(typing, {names}):\n    return typed(typing, {names})', space)
    return intrinsic(space[formula.__name__])
