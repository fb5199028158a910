"""The paradigms of structural re-parameterization, one file each: formula, domain, refusals, public functions."""

from reptool.fusions.avg_pool import avg_pool_kernel as avg_pool_kernel
from reptool.fusions.bn_conv import bn_kernel as bn_kernel
from reptool.fusions.branch_add import branch_add as branch_add
from reptool.fusions.branch_concat import branch_concat as branch_concat
from reptool.fusions.conv_bn import bn_scale_shift as bn_scale_shift
from reptool.fusions.conv_bn import fuse_conv_bn as fuse_conv_bn
from reptool.fusions.conv_bn import scale_rows as scale_rows
from reptool.fusions.distribute import distribute_over_concat as distribute_over_concat
from reptool.fusions.distribute import distribute_over_sum as distribute_over_sum
from reptool.fusions.kernel_size import align_kernels as align_kernels
from reptool.fusions.linear import full_to_linear as full_to_linear
from reptool.fusions.linear import fuse_conv_linear as fuse_conv_linear
from reptool.fusions.linear import linear_to_full as linear_to_full
from reptool.fusions.linear import linear_to_pointwise as linear_to_pointwise
from reptool.fusions.linear import pointwise_to_linear as pointwise_to_linear
from reptool.fusions.nonlinear.carried_shortcut import carry_shortcut as carry_shortcut
from reptool.fusions.nonlinear.dead_channels import drop_channels as drop_channels
from reptool.fusions.nonlinear.positive_scale import scale_before_activation as scale_before_activation
from reptool.fusions.nonlinear.siblings import merge_siblings as merge_siblings
from reptool.fusions.resampling.upsample_conv import fuse_upsample_conv as fuse_upsample_conv
from reptool.fusions.resampling.upsample_conv import upsample_kernel as upsample_kernel
from reptool.fusions.sequential import fuse_1x1_kxk as fuse_1x1_kxk
from reptool.fusions.sequential import fuse_kxk_1x1 as fuse_kxk_1x1
from reptool.fusions.sequential import fuse_sequential as fuse_sequential
from reptool.fusions.shortcut import dirac_kernel as dirac_kernel

__all__ = [
    "align_kernels",
    "avg_pool_kernel",
    "bn_kernel",
    "bn_scale_shift",
    "branch_add",
    "branch_concat",
    "carry_shortcut",
    "dirac_kernel",
    "distribute_over_concat",
    "distribute_over_sum",
    "drop_channels",
    "full_to_linear",
    "fuse_1x1_kxk",
    "fuse_conv_bn",
    "fuse_conv_linear",
    "fuse_kxk_1x1",
    "fuse_sequential",
    "fuse_upsample_conv",
    "linear_to_full",
    "linear_to_pointwise",
    "merge_siblings",
    "pointwise_to_linear",
    "scale_before_activation",
    "scale_rows",
    "upsample_kernel",
]
