"""Name maps: the weights of a deployed model under the names of its author's own deployed form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.errors import InputError
from reptool.frontends.given import names_itself

Names = Sequence[tuple[str, str]]

NAME_MAPS: Mapping[str, Names] = {
    "RepVGG": ((r"\brbr_dense\.(conv|0)\.", "rbr_reparam."), (r"^stage\d_(\w+_)?aux\..*", "")),
    "ACNet": ((r"\bsquare_conv\.", "fused_conv."),),
    "DiverseBranchBlock": ((r"\bdbb_origin\.conv\.", "dbb_reparam."),),
    "MobileOne": ((r"\b(rbr_conv\.0|rbr_scale)\.conv\.", "reparam_conv."),),
    "RepViT": ((r"\.conv\.c\.", "."), (r"\.c\.", "."), (r"\.classifier\.l\.", ".")),
    "RepNeXt": ((r"\.conv_(3_3|7_7)\.", "."), (r"\.conv\.", "."), (r"\.head\.linear\.", ".")),
}
"""Repository -> pairs of a pattern in a deployed name and what stands there in the author's deployed model.

A tensor of which no name is left (RepVGGplus' heads for training) is left out.
"""


def renamed(state: Mapping[str, Tensor], names: str | Names) -> dict[str, Tensor]:
    """A state with the names of an author's deployed model.

    Args:
        state: the `state_dict` of a model that `reptool.deploy` returned.
        names: a repository of `NAME_MAPS`, or pairs ``(regular expression, replacement)``, applied in their order.

    Returns:
        The same tensors under other names; names that no pattern matches stay, and a tensor whose name becomes empty
        is left out.

    Raises:
        InputError: the repository is not known, or two tensors would get one name.

    Example:
        >>> state = {"stage1.0.rbr_dense.conv.weight": torch.zeros(2, 2, 3, 3), "linear.bias": torch.zeros(2)}
        >>> sorted(renamed(state, "RepVGG"))
        ['linear.bias', 'stage1.0.rbr_reparam.weight']
    """
    if isinstance(names, str):
        if names not in NAME_MAPS:
            raise InputError(f"no name map {names!r}; there are {', '.join(NAME_MAPS)}, or give pairs of patterns")
        names = NAME_MAPS[names]
    found: dict[str, Tensor] = {}
    for old, value in state.items():
        new = old
        for pattern, replacement in names:
            new = re.sub(pattern, replacement, new)
        if not new:
            continue
        if new in found:
            raise InputError(
                f"two tensors would be called {new!r}, one of them {old!r}; give pairs that tell them apart"
            )
        found[new] = value
    return found


@names_itself
def load_deployed(author: nn.Module, deployed: nn.Module, names: str | Names) -> None:
    """Load a deployed model's weights into the deployed form that its author's own code builds (``deploy=True``).

    Norms that reptool folded and the author keeps are set to return their input: mean 0, variance 1 - eps, scale 1,
    shift 0.

    Args:
        author: the author's model in its deployed form; it is written.
        deployed: what `reptool.deploy` returned for the author's training form.
        names: a repository of `NAME_MAPS`, or pairs ``(regular expression, replacement)``.

    Raises:
        InputError: a tensor is missing, left over or of another shape; nothing was written then.

    Example:
        >>> import reptool
        >>> block = lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
        >>> theirs = nn.Sequential(nn.Conv2d(3, 4, 3))
        >>> load_deployed(theirs, reptool.deploy(block()), ())
        >>> load_deployed(theirs, reptool.deploy(block()), [(r"^0", "a")])
        Traceback (most recent call last):
            ...
        reptool.errors.InputError: load_deployed: '0.weight' is not in the deployed model after renaming, ...
    """
    state = renamed(deployed.state_dict(), names)
    wanted = author.state_dict()
    for path, module in author.named_modules():
        lead = f"{path}." if path else ""
        if isinstance(module, _BatchNorm) and module.track_running_stats and not any(k.startswith(lead) for k in state):
            state.update({f"{lead}{k}": v for k, v in _neutral(module).items()})
    for name, value in wanted.items():
        if name not in state:
            raise InputError(f"{name!r} is not in the deployed model after renaming, which has {_some(state, wanted)}")
        if state[name].shape != value.shape:
            raise InputError(f"{name!r} is {tuple(state[name].shape)}, and the author's is {tuple(value.shape)}")
    if len(state) > len(wanted):
        raise InputError(f"the author's model has no {_some(state, wanted)}")
    author.load_state_dict(state)


def _neutral(norm: _BatchNorm) -> dict[str, Tensor]:
    """The state of a norm that returns its input."""
    assert norm.running_mean is not None and norm.running_var is not None
    state = {
        "running_mean": torch.zeros_like(norm.running_mean),
        "running_var": torch.full_like(norm.running_var, 1 - norm.eps),
        "num_batches_tracked": torch.tensor(0),
    }
    if norm.affine:
        state |= {"weight": torch.ones_like(norm.weight), "bias": torch.zeros_like(norm.bias)}
    return state


def _some(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Names that the author's model has not."""
    extra = [n for n in state if n not in wanted]
    return ", ".join(extra[:4]) + (f" and {len(extra) - 4} more" if len(extra) > 4 else "") if extra else "no others"
