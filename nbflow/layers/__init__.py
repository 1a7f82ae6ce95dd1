"""`nf.layers`: ops with variables of their own, under the layer's name.

A layer called `hidden` makes the variables `hidden/weights` and `hidden/bias`, and its ops lie in the scope `hidden`.
Without a name it is called after its kind, numbered: `dense`, `dense.1`.
"""

from nbflow.layers.attention import multi_head_attention
from nbflow.layers.basic import dense, embedding
from nbflow.layers.common import Activation, Initializer, glorot_uniform
from nbflow.layers.convolution import conv1d, conv2d, conv3d, conv_transpose2d, depthwise_conv2d
from nbflow.layers.normalization import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from nbflow.layers.recurrent import gru, lstm, rnn

__all__ = [
    "Activation",
    "Initializer",
    "batch_norm",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose2d",
    "dense",
    "depthwise_conv2d",
    "embedding",
    "glorot_uniform",
    "group_norm",
    "gru",
    "instance_norm",
    "layer_norm",
    "lstm",
    "multi_head_attention",
    "rms_norm",
    "rnn",
]
