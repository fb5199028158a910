"""What a report holds, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from reptool.refusal import Code, Refusal
from reptool.report.picture.graph import Graph


@dataclass
class FusedRegion:
    """One region that became one layer.

    Args:
        layer: path (or ``path (functional)``) of the layer.
        kind: what the layer is, in words.
        absorbed: paths of the modules and parameters that went into it.
        rules: the paradigms used.
        multiplications: of convolution and linear layers, before and after.
        price: weighted price before and after, at the nominal image size by which plans are made.
        error: largest error in float64 before the cast, relative to ``sum |W||x|`` (None when not verified).
        error_cast: the same after the cast.
        lost: share of what was folded into the layer's own weight that the cast loses, ``|cast(W + D) - W - D| / |D|``
            (None where nothing was folded into one, or nothing was verified). Small updates vanish in narrow dtypes.
        sizes: input sizes tried.
        at: the size at which multiplications are counted: ``"example_inputs"``, all samples of them, or ``"nominal"``
            (one sample of 56x56, or 512 or 16x16x16 positions), where nobody showed what comes in.
    """

    layer: str
    kind: str
    absorbed: list[str]
    rules: list[str]
    multiplications: tuple[int, int]
    price: tuple[float, float]
    error: float | None = None
    error_cast: float | None = None
    sizes: int = 0
    lost: float | None = None
    at: str = "nominal"


@dataclass
class Rewritten:
    """What a rule of the caller's own rewrote.

    Args:
        rule: its name.
        places: the paths of modules and names of operations, one for each site.
        error: largest error in float64, relative to the largest value of the model's outputs.
        inputs: how many inputs were compared.
    """

    rule: str
    places: list[str]
    error: float
    inputs: int


@dataclass(repr=False)
class Found:
    """What a report holds: what `deploy` did or `explain` would do.

    Args:
        model: the model's class name.
        regions: what was fused.
        refusals: what was left alone, and why.
        rewritten: what rules of the caller's own rewrote.
        names: new parameter name -> the old names it was made of.
        layers: convolution and linear layers, before and after.
        norms: batch normalizations that run, before and after.
        norms_left: where those are that still run; each has a refusal.
        unused: norms that no call runs, such as those of an auxiliary head in eval mode, or that run only in the code
            that is kept for other calls. They are not counted.
        parameters: number of parameters before and after.
        multiplications: of the whole model on `example_inputs`, all samples of them, before and after, as
            `torch.utils.flop_counter` counts them (it gives twice as many operations). None without example inputs;
            the second is None where it is not known.
        untraced: modules whose code could not be followed, and why.
        impulses: modules whose code was not read but measured: by whose word, how they were tested, the largest error.
        specialized: questions the model's code asked while it was captured.
        fallbacks: method that was specialized -> the arguments it was specialized for; for others it runs as it was.
        changing: parameters and buffers that the model itself changes when it runs in eval mode, such as those of
            observers (seen with example inputs).
        unwrapped: path of each wrapper whose place its layer took -> the class it was of.
        wrapped: path of each module that only hands on to a layer, and stays -> why.
        kept: weights and bytes kept for that, which are not among `parameters`.
        rehearsed: modules with regenerated methods that were run beside the original ones on made-up inputs.
        model_error: whole-model error on the example inputs: (deployed, original) against float64.
        model_difference: largest difference of the whole from the original in the runtime in which both were run, for
            what has no float64 (ONNX).
        model_error_float64: that of the model deployed in float64, where `model_error` alone tells nothing, as in
            outputs that depend on rounding.
        seconds: how long each phase took.
        graphs: of each traced module, before and after, for the page.
    """

    model: str
    regions: list[FusedRegion] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    rewritten: list[Rewritten] = field(default_factory=list)
    layers: tuple[int, int] = (0, 0)
    norms: tuple[int, int] = (0, 0)
    norms_left: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    parameters: tuple[int, int] = (0, 0)
    multiplications: tuple[int, int | None] | None = None
    untraced: dict[str, str] = field(default_factory=dict)
    impulses: dict[str, str] = field(default_factory=dict)
    specialized: list[str] = field(default_factory=list)
    fallbacks: dict[str, list[str]] = field(default_factory=dict)
    changing: list[str] = field(default_factory=list)
    unwrapped: dict[str, str] = field(default_factory=dict)
    wrapped: dict[str, str] = field(default_factory=dict)
    kept: tuple[int, int] = (0, 0)
    rehearsed: int = 0
    model_error: tuple[float, float] | None = None
    model_error_float64: float | None = None
    model_difference: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    graphs: list[Graph] = field(default_factory=list)


@dataclass
class Reason:
    """One reason for which sites were left.

    Args:
        code: of the refusals.
        sentence: of the refusals.
        places: where the sites are, each once, and how often it was met there.
    """

    code: Code
    sentence: str
    places: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many sites were left for it."""
        return sum(self.places.values())


def reasons(refusals: list[Refusal]) -> list[Reason]:
    """Refusals by code and sentence, in the order in which they were first met.

    >>> left = [Refusal(Code.STRIDE, "strides 1 and 2", (p,)) for p in ("a.add", "b.add")]
    >>> [(r.code.value, r.count, list(r.places)) for r in reasons(left)]
    [('stride', 2, ['a.add', 'b.add'])]
    """
    found: dict[Code, dict[str, Reason]] = {}
    for refusal in refusals:
        reason = found.setdefault(refusal.code, {}).setdefault(refusal.sentence, Reason(refusal.code, refusal.sentence))
        place = ", ".join(dict.fromkeys(refusal.places())) or "<root>"
        reason.places[place] = reason.places.get(place, 0) + 1
    return [reason for by_sentence in found.values() for reason in by_sentence.values()]
