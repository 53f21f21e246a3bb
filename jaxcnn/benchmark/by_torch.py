"""The same networks in PyTorch, on as many threads as there are cores."""

from __future__ import annotations

import numpy as np

from jaxcnn.benchmark.contestant import Prepared, one_by_one
from jaxcnn.benchmark.problem import CLASSES, HIDDEN, RATE, STAGES, Network, Problem, channels_first
from jaxcnn.training.devices import available_cores


def prepare(problem: Problem, devices: int, *, channels_last: bool = False, compiled: bool = False) -> Prepared:
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

    del devices
    torch.set_num_threads(available_cores())
    torch.compiler.reset()  # another batch is another program, not one for every batch
    model = _small(problem) if problem.network.filters else _resnet20(problem.network)
    images = torch.from_numpy(np.ascontiguousarray(problem.images.transpose(0, 1, 4, 2, 3)))
    labels = torch.from_numpy(problem.labels).long()
    with torch.no_grad():
        for parameter, array in zip(model.parameters(), channels_first(problem), strict=True):
            if parameter.shape != array.shape:
                raise ValueError(f"benchmark: PyTorch has {tuple(parameter.shape)}, the given array {array.shape}")
            parameter.copy_(torch.from_numpy(array))
    batches = list(zip(images, labels, strict=True))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    apply = torch.compile(model, dynamic=False) if compiled else model

    def step(_, images, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(apply(images), labels)
        loss.backward()
        optimizer.step()
        return None, loss.detach()

    def wait(_):
        """Nothing: on the CPU a call returns when its work is done."""

    return Prepared(one_by_one(step, wait, None, batches), lambda: None)


def _small(problem: Problem):
    """Convolutions with pooling, a sigmoid layer, logits."""
    from torch import nn  # pyright: ignore[reportMissingImports]

    network, flat = problem.network, problem.parameters[-4].shape[0]
    layers, channels = [], network.input_shape[-1]
    for features in network.filters:
        layers += [nn.Conv2d(channels, features, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = features
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, CLASSES))


def _resnet20(network: Network):
    from torch import nn  # pyright: ignore[reportMissingImports]

    def normalized(channels, features, size, stride=1):
        # With stride 2 the padding of "SAME" is one row below and one column on the right, which nn.Conv2d cannot say.
        padding = [nn.ZeroPad2d((0, 1, 0, 1))] if stride > 1 and size > 1 else []
        convolution = nn.Conv2d(channels, features, size, stride, size // 2 if stride == 1 else 0, bias=False)
        return nn.Sequential(*padding, convolution, nn.BatchNorm2d(features))

    class Block(nn.Module):
        def __init__(self, channels, features, stride):
            super().__init__()
            self.first = normalized(channels, features, 3, stride)
            self.second = normalized(features, features, 3)
            self.shortcut = normalized(channels, features, 1, stride) if stride > 1 else nn.Identity()
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))

    blocks, channels = [], 16
    for features, stride in STAGES:
        for i in range(3):
            blocks.append(Block(channels, features, stride if i == 0 else 1))
            channels = features
    first = normalized(network.input_shape[-1], 16, 3)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]
    return nn.Sequential(first, nn.ReLU(), *blocks, *head)
