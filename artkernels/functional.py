"""The operations, gathered as in torch.nn.functional."""

from .ops.conv import conv2d_act, conv2d_norm_act
from .ops.conv_transpose import conv_transpose2d_act, conv_transpose2d_norm_act
from .ops.feature_statistics import feature_statistics
from .ops.gram import gram_matrix, gram_mse_loss
from .ops.norm_act import adaptive_instance_norm, batch_norm_act, group_norm_act, instance_norm_act
from .ops.reparameterize_kl import reparameterize_kl

__all__ = [
    "adaptive_instance_norm",
    "batch_norm_act",
    "conv2d_act",
    "conv2d_norm_act",
    "conv_transpose2d_act",
    "conv_transpose2d_norm_act",
    "feature_statistics",
    "gram_matrix",
    "gram_mse_loss",
    "group_norm_act",
    "instance_norm_act",
    "reparameterize_kl",
]
