"""The tools of reptool's own tests, public so that other tests can use them too.

The strategies and `assert_rule` need Hypothesis (``pip install "reptool[test]"``), the rest nothing but reptool.

>>> import torch, torch.nn as nn
>>> conv = nn.Conv2d(2, 3, 3)
>>> assert_equivalent(conv, lambda x: nn.functional.conv2d(x, conv.weight.double(), conv.bias.double()),
...                   torch.randn(2, 2, 7, 6)) < 1e-12
True
"""

from typing import TYPE_CHECKING, Any

from reptool.ir.walk import named_tensors as tensors_in
from reptool.probing.operations import count_operations as count_operations
from reptool.testing._apply import apply_kernel as apply_kernel
from reptool.testing._apply import dense_weight as dense_weight
from reptool.testing._collapse import assert_collapses as assert_collapses
from reptool.testing._conversion import assert_same_conversion as assert_same_conversion
from reptool.testing._equivalence import assert_equivalent as assert_equivalent
from reptool.testing._equivalence import other_sizes as other_sizes
from reptool.testing._perturb import Perturbed as Perturbed
from reptool.testing._perturb import perturb as perturb
from reptool.testing._perturbing.change import KINDS as PERTURBED_KINDS
from reptool.testing._randomize import randomize as randomize
from reptool.testing._sites import executed_sites as executed_sites
from reptool.testing._sites import unnamed_sites as unnamed_sites

if TYPE_CHECKING:
    from reptool.testing._rules import assert_rule as assert_rule
    from reptool.testing._strategies import axes as axes
    from reptool.testing._strategies import bn_statistics as bn_statistics
    from reptool.testing._strategies import channel_structures as channel_structures
    from reptool.testing._strategies import composable_kernels as composable_kernels
    from reptool.testing._strategies import conv_modules as conv_modules
    from reptool.testing._strategies import kernels as kernels
    from reptool.testing._strategies import norm_modules as norm_modules
    from reptool.testing._strategies import parallel_kernels as parallel_kernels

__all__ = [
    "PERTURBED_KINDS",
    "Perturbed",
    "apply_kernel",
    "assert_collapses",
    "assert_equivalent",
    "assert_rule",
    "assert_same_conversion",
    "axes",
    "bn_statistics",
    "channel_structures",
    "composable_kernels",
    "conv_modules",
    "count_operations",
    "dense_weight",
    "executed_sites",
    "kernels",
    "norm_modules",
    "other_sizes",
    "parallel_kernels",
    "perturb",
    "randomize",
    "tensors_in",
    "unnamed_sites",
]

_STRATEGIES = (
    "axes",
    "bn_statistics",
    "channel_structures",
    "composable_kernels",
    "conv_modules",
    "kernels",
    "norm_modules",
    "parallel_kernels",
)


def __getattr__(name: str) -> Any:
    """The strategies and `assert_rule`, imported when they are first asked for: they alone need Hypothesis."""
    if name == "assert_rule":
        from reptool.testing import _rules

        return _rules.assert_rule
    if name not in _STRATEGIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from reptool.testing import _strategies

    return getattr(_strategies, name)
