from jaxcnn.rule import Rule, Static
from jaxcnn.rules.activation import relu, sigmoid
from jaxcnn.rules.convolution import conv2d, rotate180
from jaxcnn.rules.dense import backproplayer, dense
from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.rules.pooling import g_maxpool, max_pool
from jaxcnn.rules.shape import flatten, unflatten
from jaxcnn.layers import *
from jaxcnn import models
