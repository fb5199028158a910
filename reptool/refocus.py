"""Refocusing Learning: a trained model's kernels become frozen bases, and what refocuses them is trained.

    pipeline = Refocusing(model)                      # RefConv layers with W_b of `model`
    optimizer = SGD(pipeline.parameter_groups(), lr=0.1, momentum=0.9)
    ...train pipeline.model...
    pipeline.save("epoch3.pt", optimizer=optimizer)   # and pipeline.resume(...) in another process
    model.load_state_dict(pipeline.finish())          # W_t = W_b * W_r + W_b under the original names

The bases are buffers: no optimizer and no weight decay reaches them. Layers that are not refocused (pointwise
convolutions, norms, the classifier) train on as in the paper, or are frozen with `rest="frozen"`.

Paper: Cai et al., "RefConv: Re-parameterized Refocusing Convolution for Powerful ConvNets", sections 3.3, 4.4.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from reptool.blocks import RefConv
from reptool.blocks.behind import Behind
from reptool.blocks.parametrizations import Refocus
from reptool.blocks.ref_conv import Factory, Init, MapGroups, Transform
from reptool.errors import InputError
from reptool.expansion import expand
from reptool.expansion.blocks.kinds import Refocusing as RefocusingAdapter
from reptool.expansion.where import Where

__all__ = ["Refocusing", "load_refconv_checkpoint", "once_per_step"]

Basis = Literal["inherited", "random"]
Rest = Literal["trained", "frozen"]
PathLike = str | os.PathLike[str]
FORMAT = 1


class Refocusing:
    """A model whose convolutions refocus, and the way back to the original's state dict.

    The paper's ablations are `basis="random"` (R W_b), `train_basis=True` (T W_b), both (R & T W_b),
    `init="zeros"` (ZI) and `identity=False` (without shortcut).

    Args:
        model: a trained model; it stays as it is.
        where: which convolutions, as for `reptool.expand`; None takes all but pointwise ones.
        basis: "inherited" (the model's kernels) or "random" (drawn anew).
        train_basis: whether the bases are trained too; they are parameters then.
        init: start of the refocusing weights, "xavier" or "zeros" (the model then starts as it was), or a function that
            fills a tensor.
        identity: whether the basis is added to the transformed kernel.
        rest: whether all other parameters are "trained" (as the authors do) or "frozen".
        map_kernel_size: odd size of the refocusing kernels; smaller kernels are left alone.
        map_groups: groups of the refocusing convolutions: a number, or a function (shape, groups) -> number; None takes
            the paper's.
        transform: in place of the refocusing convolutions: a function (shape, groups) -> module makes one for each
            layer, a module is copied for each, a function is used as it is. See `reptool.blocks.RefConv`.
        example_inputs: as for `reptool.deploy`.

    Attributes:
        model: the module to train.
        layers: its RefConv layers by path.

    Raises:
        InputError: nothing to refocus, or unknown options.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        >>> pipeline = Refocusing(net)
        >>> [name for name, _ in pipeline.trainable() if name.startswith("0.")]
        ['0.bias', '0.convmap.weight']
        >>> list(pipeline.finish()) == list(net.state_dict())
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        where: Where = None,
        basis: Basis = "inherited",
        train_basis: bool = False,
        init: Init = "xavier",
        identity: bool = True,
        rest: Rest = "trained",
        map_kernel_size: int = 3,
        map_groups: MapGroups = None,
        transform: Transform | Factory | None = None,
        example_inputs: Any = None,
    ) -> None:
        _one_of("basis", basis, ("inherited", "random"))
        _one_of("rest", rest, ("trained", "frozen"))
        options: dict[str, Any] = {"train_basis": train_basis, "init": init, "identity": identity}
        options |= {"map_kernel_size": map_kernel_size, "map_groups": map_groups, "transform": transform}
        adapter = RefocusingAdapter(False, {**options, "inherit": basis == "inherited"})
        self.model = expand(model, adapter, where=where, preserve=False, example_inputs=example_inputs)
        self._behind = [path for path, m in self.model.named_modules() if isinstance(m, Behind)]
        self.layers = {self._own(path): m for path, m in self.model.named_modules() if isinstance(m, RefConv)}
        self.options: dict[str, Any] = {"basis": basis, **{k: _written_down(v) for k, v in options.items()}}
        self._shapes = {name: value.shape for name, value in model.state_dict().items()}
        if rest == "frozen":
            own = {id(p) for layer in self.layers.values() for p in layer.parameters()}
            for parameter in self.model.parameters():
                parameter.requires_grad_(id(parameter) in own)

    def _own(self, name: str) -> str:
        """The name that something has in the original model, where a layer does not stand behind its padding."""
        for path in self._behind:
            if name.startswith(f"{path}.block"):
                return path + name.removeprefix(f"{path}.block")
        return name

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that training changes; the frozen bases are buffers and not among them."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def parameter_groups(self, weight_decay: float = 4e-5, *, rest_decay: float | None = None) -> list[dict[str, Any]]:
        """Groups for an optimizer: "refocusing" (W_r, and W_b if trained) and "rest".

        Args:
            weight_decay: of the refocusing weights (the paper's number).
            rest_decay: of all others; None takes `weight_decay`.

        Example:
            >>> groups = Refocusing(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))).parameter_groups()
            >>> [(group["name"], len(group["params"])) for group in groups]
            [('refocusing', 1), ('rest', 3)]
        """
        maps = {
            id(p)
            for layer in self.layers.values()
            for name, p in layer.named_parameters()
            if name == "weight" or name.startswith("convmap")
        }
        first = [p for _, p in self.trainable() if id(p) in maps]
        others = [p for _, p in self.trainable() if id(p) not in maps]
        decay = weight_decay if rest_decay is None else rest_decay
        groups = [
            {"name": "refocusing", "params": first, "weight_decay": weight_decay},
            {"name": "rest", "params": others, "weight_decay": decay},
        ]
        return [group for group in groups if group["params"]]

    def save(
        self,
        path: PathLike,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        **extra: Any,
    ) -> None:
        """Write everything needed to go on: state dicts and plain data only.

        Args:
            path: file to write.
            optimizer: whose state is kept.
            scheduler: whose state is kept.
            **extra: plain data of the caller's (epoch=3, best=0.9), returned by `resume`.
        """
        kept = {
            "format": FORMAT,
            "options": self.options,
            "model": self.model.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "extra": extra,
        }
        torch.save(kept, path)

    def resume(
        self,
        path: PathLike,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> dict[str, Any]:
        """Read what `save` wrote (with ``weights_only=True``) into this pipeline.

        Args:
            path: file written by `save`.
            optimizer: gets its state back.
            scheduler: gets its state back.

        Returns:
            The `extra` given to `save`.

        Raises:
            InputError: another kind of file, other options, or a model that does not fit; nothing is changed
                then.
        """
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or found.get("format") != FORMAT or "model" not in found:
            raise InputError(
                f"{os.fspath(path)} is no checkpoint of Refocusing.save; for one of the authors' use "
                "load_refconv_checkpoint."
            )
        differing = {k for k, v in self.options.items() if found["options"].get(k) != v}
        if differing:
            wanted = {key: found["options"].get(key) for key in sorted(differing)}
            raise InputError(f"{os.fspath(path)} was made with other options; build the Refocusing with {wanted}.")
        for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
            if part is not None and found[name] is None:
                raise InputError(f"{os.fspath(path)} holds no {name}; it was saved without one.")
        _check_fits(self.model, found["model"])
        self.model.load_state_dict(found["model"])
        if optimizer is not None:
            optimizer.load_state_dict(found["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(found["scheduler"])
        extra: dict[str, Any] = found["extra"]
        return extra

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """The original architecture's state dict: every W_t under the name of its kernel, nothing else new.

        Returns:
            Copies, in the order and with the names and shapes of the original model.
        """
        state = {self._own(name): value for name, value in self.model.state_dict().items()}
        kernels = {f"{path}.weight": layer.transformed_weight() for path, layer in self.layers.items()}
        found = {name: kernels.get(name, state.get(name)) for name in self._shapes}
        result: dict[str, Tensor] = {}
        for name, value in found.items():
            assert value is not None, name
            assert value.shape == self._shapes[name], name
            result[name] = value.detach().clone()
        return result


def load_refconv_checkpoint(
    model: nn.Module,
    checkpoint: PathLike | Mapping[str, Any],
    *,
    rename: Callable[[str], str] | None = None,
    maps: bool = True,
) -> None:
    """Load a checkpoint of the authors' RefConv into a model with `reptool.blocks.RefConv` layers.

    The names map one to one: the authors' buffer ``<layer>.weight`` is the basis ``<layer>.weight``, their
    parameter ``<layer>.convmap.weight`` is ``<layer>.convmap.weight``. A ``module.`` in front of all names
    (DataParallel), and a dict around the state dict (``state_dict``, ``model``, ``net``), are removed.

    Args:
        model: built by `Refocusing`, `reptool.expand` or from RefConv layers.
        checkpoint: file (read with ``weights_only=True``) or state dict.
        rename: the name in `model` of a name in the checkpoint, where layers are called differently.
        maps: whether refocusing weights must be there; False loads a baseline's kernels as the bases.

    Raises:
        InputError: no RefConv in the model, or names or shapes that do not fit; nothing is changed then.

    Example:
        >>> model = nn.Sequential(RefConv(4, 4, 3, groups=4, bias=False))
        >>> theirs = {"module.0.weight": torch.ones(4, 1, 3, 3),
        ...           "module.0.convmap.weight": torch.zeros(4, 4, 3, 3)}
        >>> load_refconv_checkpoint(model, theirs)
        >>> torch.equal(model[0].transformed_weight(), theirs["module.0.weight"])
        True
    """
    layers = {path for path, m in model.named_modules() if isinstance(m, RefConv)}
    if not layers:
        raise InputError(f"this {type(model).__name__} has no RefConv layers; expand it first.")
    if isinstance(checkpoint, Mapping):
        state: Any = checkpoint
    else:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model", "net"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError("the checkpoint is no state dict (a mapping of names to tensors).")
    found: dict[str, Tensor] = dict(state)
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    if rename is not None:
        found = {rename(name): value for name, value in found.items()}
    own = model.state_dict()
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    if not maps:
        optional |= {name for name in own for path in layers if name.startswith(f"{path}.convmap.")}
    found = {**{name: own[name] for name in optional if name not in found}, **found}
    _check_fits(model, found)
    model.load_state_dict(found)


def _check_fits(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Same names, same shapes."""
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for what, found in (("names missing", missing), ("unknown names", unknown), ("other shapes", shapes))
        if found
    ]
    if problems:
        raise InputError(
            f"the checkpoint does not fit this {type(model).__name__}: {'; '.join(problems)}. Nothing was loaded."
        )


@contextmanager
def once_per_step(model: nn.Module) -> Iterator[None]:
    """Transform every RefConv kernel once for several forward and backward passes (gradient accumulation).

    The gradients of the kernels are collected inside, and go through the maps once at the end. The result is
    that of transforming the kernel in every pass. Not for modules inside DistributedDataParallel, which must
    see every backward pass.

    Args:
        model: has RefConv layers or convolutions with `parametrizations.refconv`; they must not be changed
            inside.

    Example:
        >>> model, x = RefConv(4, 4, 3), torch.randn(2, 4, 5, 5)
        >>> with once_per_step(model):
        ...     for part in x.split(1):
        ...         model(part).sum().backward()
        >>> model.convmap.weight.grad.shape
        torch.Size([16, 1, 3, 3])
    """
    makers = [(module, name) for module in model.modules() if (name := _maker(module))]
    kernels = [getattr(module, name)() for module, name in makers]
    leaves = [kernel.detach().requires_grad_(kernel.requires_grad) for kernel in kernels]
    for (module, name), leaf in zip(makers, leaves, strict=True):
        module.__dict__[name] = lambda leaf=leaf: leaf
    try:
        yield
    finally:
        for module, name in makers:
            module.__dict__.pop(name, None)
    seen = [(kernel, leaf.grad) for kernel, leaf in zip(kernels, leaves, strict=True) if leaf.grad is not None]
    if seen:
        torch.autograd.backward([kernel for kernel, _ in seen], [grad for _, grad in seen])


def _maker(module: nn.Module) -> str:
    """The method by which `module` makes a refocused kernel, or ''."""
    if isinstance(module, RefConv):
        return "transformed_weight"
    if isinstance(module, ParametrizationList) and any(isinstance(part, Refocus) for part in module):
        return "forward"
    return ""


def _written_down(option: Any) -> Any:
    """An option as plain data for a checkpoint: code is written down by its name."""
    if isinstance(option, nn.Module):
        return type(option).__qualname__
    return getattr(option, "__qualname__", repr(option)) if callable(option) else option


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}={value!r} was given, expected {' or '.join(map(repr, allowed))}.")
