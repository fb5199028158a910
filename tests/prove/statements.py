"""What the laws claim along one axis, as statements about integers, proved for every image size, padding and dilation.

Kernel sizes and strides run through a bounded range; padding of either sign, dilation and image size are symbolic. The
conditions are those of `reptool.algebra` itself, whose code is run on symbolic numbers (`symbolic`). Only the
common lattice of taps is replaced by the finest one (every position), which holds every other.

With ``m(n) = floor((n + T - 1) / s) + 1`` positions written for `n` read, and tap `k` of position `p` reading
``s p + d k - a``::

    compose   positions:  every inner position that g reads is one that f writes, or everything that f would read there
                          is extended (zeros); sizes: the composition writes as many positions as the two layers
    add       equal sizes for every n, and nothing read that a branch does not read
    concat    the same wherever the original does not raise
    transposed, stride 1: a flipped convolution with padding d (K - 1) - a
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import z3

from reptool.algebra import laws
from reptool.algebra.compose import _compose_axis
from reptool.algebra.kernel import Axis, Border
from reptool.refusal import Code, Refusal
from tests.prove.symbolic import Bool, Int, expression, paths

KERNELS, STRIDES = range(1, 4), range(1, 4)
WRAPPED = (Border.REFLECT, Border.REPLICATE, Border.CIRCULAR)


@dataclass
class Outcome:
    """What was found about one law.

    Args:
        proved: statements that hold.
        wrong: counterexamples, as numbers.
        refused: for each code, a counterexample that shows the refusal is needed; None where none was found.
    """

    proved: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[Code, dict[str, Any] | None] = field(default_factory=dict)


def _axis(name: str, kernel: int, stride: int, border: Border) -> tuple[Axis, list[Any], dict[str, Any]]:
    """An axis with unknown dilation and padding, what may be assumed of them, and their names."""
    d, a, e = (z3.Int(f"{name}.{part}") for part in ("dilation", "before", "after"))
    made = object.__new__(Axis)
    values = (kernel, stride, Int(d) if kernel > 1 else 1, Int(a), Int(e), border)
    for key, value in zip(("kernel_size", "stride", "dilation", "before", "after", "border"), values, strict=True):
        object.__setattr__(made, key, value)
    known: dict[str, Any] = {f"{name}.kernel_size": kernel, f"{name}.stride": stride, f"{name}.border": border.value}
    assumed = [d >= 1] if border is Border.ZEROS else [d >= 1, z3.Or(a > 0, e > 0)]  # one that is never read is zeros
    dilation = d if kernel > 1 else 1
    return made, assumed, {**known, f"{name}.dilation": dilation, f"{name}.before": a, f"{name}.after": e}


def _out(axis: Axis, n: Any, name: str) -> tuple[Any, list[Any]]:
    """The positions that an axis writes for `n`, at least one, and what defines them."""
    m = z3.Int(name)
    total = (
        n
        + expression(axis.before)
        + expression(axis.after)
        - expression(axis.dilation) * (expression(axis.kernel_size) - 1)
    )
    s = axis.stride
    return m, [m >= 1, s * (m - 1) <= total - 1, total - 1 < s * m]


def _finest(taps: list[Any]) -> tuple[Any, int, Any]:
    """Every position from the first tap of all to the last one."""
    first = max(before for _, _, before in taps)
    last = max(d * (k - 1) - before for k, d, before in taps)
    return last + first + 1, 1, first


@contextlib.contextmanager
def _on_the_finest_lattice() -> Iterator[None]:
    with mock.patch("reptool.algebra.compose.gcd", return_value=1), mock.patch.object(laws, "common_lattice", _finest):
        yield


def _solved(conditions: list[Any], names: dict[str, Any]) -> dict[str, Any] | None:
    """Numbers under which all conditions hold; None where there are none.

    Raises:
        TimeoutError: the solver does not know.
    """
    solver = z3.Solver()
    solver.set("timeout", 20_000)
    solver.add(*conditions)
    answer = solver.check()
    if answer == z3.unknown:
        raise TimeoutError(solver.reason_unknown())
    if answer == z3.unsat:
        return None
    model = solver.model()
    return {k: model.eval(v, model_completion=True).as_long() if z3.is_expr(v) else v for k, v in names.items()}


# --- compose --------------------------------------------------------------------------------------------------------
def compose(
    merge: Callable[..., Any] | None = None, kernels: range = KERNELS, strides: range = STRIDES, most: int = 1000
) -> Outcome:
    """`compose` along one axis.

    Args:
        merge: in the place of the law's own function on axes.
        kernels: sizes of both kernels.
        strides: of both.
        most: counterexamples after which it ends.
    """
    out = Outcome()
    law = _compose_axis if merge is None else merge
    others = [(Border.ZEROS, b) for b in (*WRAPPED, Border.CONSTANT)] + [(b, b) for b in WRAPPED]
    others += [(b, Border.ZEROS) for b in WRAPPED]
    cases = [(*c, Border.ZEROS, Border.ZEROS) for c in itertools.product(kernels, kernels, strides, strides)]
    few = itertools.product(sorted({*kernels} - {2}), sorted({*kernels} - {2}), (1, 2), (1, 2), others)
    cases += [(kf, kg, sf, sg, *pair) for kf, kg, sf, sg, pair in few]
    bias = z3.Int("f.biased")
    for kf, kg, sf, sg, bf, bg in cases:
        if len(out.wrong) >= most:
            break
        f, assume_f, names_f = _axis("f", kf, sf, bf)
        g, assume_g, names_g = _axis("g", kg, sg, bg)
        names = {**names_f, **names_g, "f.biased": bias}
        _compose(law, g, f, bias, [*assume_f, *assume_g, bias >= 0, bias <= 1], names, out)
    return out


def _compose(
    law: Callable[..., Any], g: Axis, f: Axis, bias: Any, assumed: list[Any], names: dict[str, Any], out: Outcome
) -> None:
    n, p = z3.Int("n"), z3.Int("p")
    m1, inner = _out(f, n, "inner")
    m2, outer = _out(g, m1, "outer")
    runs = [n >= 1, *inner, *outer, p >= 0, p < m2, *_extendable(f, n), *_extendable(g, m1)]
    every = {**names, "n": n, "p": p}
    with _on_the_finest_lattice():
        ways = list(paths(lambda: law(g, f, Bool(bias == 1), 0), assumed))
    for conditions, found in ways:
        reads = [_differs(g, f, n, p, m1, kg, kf, bias == 1) for kg in _taps(g) for kf in _taps(f)]
        wrong = z3.Or(*reads)
        if isinstance(found, Refusal):
            shown = out.refused.get(found.code)
            if shown is None:
                out.refused[found.code] = _solved([*conditions, *runs, wrong], every)
            continue
        m, same = _out(found, n, "both")
        beyond = z3.Or(m != m2, z3.Not(z3.And(*_extendable(found, n))))
        for claim in (wrong, z3.And(*same, beyond)):
            witness = _solved([*conditions, *runs, claim], every)
            out.proved += witness is None
            if witness is not None:
                out.wrong.append(witness)


def _taps(axis: Axis) -> list[int]:
    return list(range(axis.kernel_size))


def _differs(g: Axis, f: Axis, n: Any, p: Any, m1: Any, kg: int, kf: int, biased: Any) -> Any:
    """Whether g sees something else at one tap than the composition says that it sees."""
    q = g.stride * p + expression(g.dilation) * kg - expression(g.before)
    at = f.stride * q + expression(f.dilation) * kf - expression(f.before)
    beyond = z3.Or(q < 0, q >= m1)
    inside = z3.And(at >= 0, at < n)
    if g.border is Border.ZEROS:  # nothing there: the composition must see nothing but zeros, and no bias
        sees = inside if f.border is Border.ZEROS else z3.BoolVal(True)
        return z3.And(beyond, z3.Or(sees, biased))
    if g.border is Border.CONSTANT:  # one constant there; that of x, through a single tap, is another law's matter
        return z3.And(beyond, inside)
    if g.border is Border.CIRCULAR and f.border is Border.CIRCULAR and f.stride == 1:
        return z3.And(beyond, m1 != n)  # turned by the same number of positions as the input
    return z3.And(beyond, z3.Or(m1 != n, at != q))


def _extendable(axis: Axis, n: Any) -> list[Any]:
    """When torch extends by as much as an axis asks for."""
    a, e = expression(axis.before), expression(axis.after)
    limit = {Border.REFLECT: n - 1, Border.CIRCULAR: n}.get(axis.border)
    return [] if limit is None else [a <= limit, e <= limit]


# --- add and concat -------------------------------------------------------------------------------------------------
def parallel(
    raises: bool, merge: Callable[..., Any] | None = None, kernels: range = KERNELS, strides: range = STRIDES,
    most: int = 1000,
) -> Outcome:  # fmt: skip
    """`add` (or `concat`, where the original raises at unequal sizes) along one axis, for two branches."""
    out = Outcome()
    law = laws._merge_axis if merge is None else merge
    pairs = list(itertools.product((Border.ZEROS, Border.REFLECT), repeat=2))
    for k1, k2, s1, s2 in itertools.product(kernels, kernels, strides, strides):
        for b1, b2 in pairs if s1 == s2 else pairs[:1]:
            if len(out.wrong) >= most:
                return out
            one, assume_1, names_1 = _axis("one", k1, s1, b1)
            two, assume_2, names_2 = _axis("two", k2, s2, b2)
            _parallel(law, (one, two), raises, [*assume_1, *assume_2], {**names_1, **names_2}, out)
    return out


def _parallel(
    law: Callable[..., Any], axes: tuple[Axis, Axis], raises: bool, assumed: list[Any], names: dict[str, Any],
    out: Outcome,
) -> None:  # fmt: skip
    n, p = z3.Int("n"), z3.Int("p")
    m1, first = _out(axes[0], n, "first")
    m2, second = _out(axes[1], n, "second")
    runs = [n >= 1, *first, *second, p >= 0, p < m1, *_extendable(axes[0], n), *_extendable(axes[1], n)]
    every = {**names, "n": n, "p": p}
    if raises:
        runs.append(m1 == m2)
    with _on_the_finest_lattice():
        ways = list(paths(lambda: law(list(axes), "sum", raises), assumed))
    for conditions, found in ways:
        if isinstance(found, Refusal):
            if out.refused.get(found.code) is None:
                shows = m1 != m2 if found.code in (Code.STRIDE, Code.EXTENT) else _read_outside(axes, n, p)
                out.refused[found.code] = _solved([*conditions, *(r for r in runs if not raises or r is not runs[-1]),
                                                   shows], every)  # fmt: skip
            continue
        m, same = _out(found, n, "both")
        claims = [z3.Or(m1 != m2, z3.And(*same, m != m1)), z3.And(*same, z3.Not(z3.And(*_extendable(found, n))))]
        claims += [_not_held(axis, found) for axis in axes]
        claims.append(z3.Or(*[_mixed(axis, found, n, p) for axis in axes]))
        for claim in claims:
            witness = _solved([*conditions, *runs, claim], every)
            out.proved += witness is None
            if witness is not None:
                out.wrong.append(witness)


def _not_held(axis: Axis, both: Axis) -> Any:
    """Whether a tap of a branch lies outside of the lattice of both."""
    last = expression(axis.dilation) * (axis.kernel_size - 1) - expression(axis.before)
    end = expression(both.kernel_size) - 1 - expression(both.before)
    return z3.Or(expression(axis.before) > expression(both.before), last > end)


def _at(axis: Axis, p: Any, k: int) -> Any:
    return axis.stride * p + expression(axis.dilation) * k - expression(axis.before)


def _mixed(axis: Axis, both: Axis, n: Any, p: Any) -> Any:
    """Whether a branch reads outside of the image where the merged kernel extends it in another way."""
    if axis.border is both.border:
        return z3.BoolVal(False)
    return z3.Or(*[z3.Or(_at(axis, p, k) < 0, _at(axis, p, k) >= n) for k in _taps(axis)])


def _read_outside(axes: tuple[Axis, Axis], n: Any, p: Any) -> Any:
    """Whether both branches read outside of the image."""
    return z3.And(*[z3.Or(*[z3.Or(_at(a, p, k) < 0, _at(a, p, k) >= n) for k in _taps(a)]) for a in axes])


# --- embed and transposed -------------------------------------------------------------------------------------------
def lattice(limit: int = 5) -> Outcome:
    """`embed`: every tap lies on the common lattice, and no coarser one holds them all; by counting."""
    from math import gcd

    from reptool.fusions.kernel_size import common_lattice

    out = Outcome()
    for k1, d1, a1, k2, d2, a2 in itertools.product(range(1, 4), range(1, limit), range(-1, 3), repeat=2):
        size, step, before = common_lattice([(k1, d1, a1), (k2, d2, a2)])
        taps = {d * i - a for k, d, a in ((k1, d1, a1), (k2, d2, a2)) for i in range(k)}
        held = {step * i - before for i in range(size)}
        distances = gcd(*(t - min(taps) for t in taps)) or 1
        right = taps <= held and min(held) == min(taps) and max(held) == max(taps) and (size == 1 or step == distances)
        out.proved += right
        if not right:
            out.wrong.append({"one": (k1, d1, a1), "two": (k2, d2, a2)})
    return out


def transposed(padding: Callable[[Any, int, Any], Any] = lambda d, k, a: d * (k - 1) - a) -> Outcome:
    """A transposed convolution of stride 1, ``x[q] W[k]`` at ``p = q + d k - a``: a convolution by ``W[K-1-k]``."""
    out = Outcome()
    d, a, p, q, n = z3.Ints("dilation before p q n")
    for size in range(1, 6):
        pad = padding(d, size, a)
        pairs = [(q == p + d * (size - 1 - k) - pad) != (p == q + d * k - a) for k in range(size)]
        written = (n - 1) + d * (size - 1) - 2 * a + 1
        read = n + 2 * pad - d * (size - 1)
        names = {"kernel_size": size, "dilation": d, "before": a, "p": p, "q": q, "n": n}
        for claim in (z3.Or(*pairs), written != read):
            witness = _solved([d >= 1, a >= 0, n >= 1, claim], names)
            out.proved += witness is None
            if witness is not None:
                out.wrong.append(witness)
    return out
