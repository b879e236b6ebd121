"""How unsure a teacher is of its pixels, and up to where it is believed."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from udaseg.components.drawn import on_device
from udaseg.models.teacher import EMATeacher
from udaseg.rng import keyed
from udaseg.types import Batch


def noisy_entropy(teacher: EMATeacher, target: Batch, *, passes: int, noise: float, seed: int) -> Tensor:
    """(B, h, w) entropy, in nats, of the mean of the teacher's probabilities over passes with other noise.

    Source: CAMix (2108.03557). Its authors mean to cut the noise off at twice its deviation, but exchange both ends, so
    that every pass adds the same constant to the image; and they add it to images of 0 to 255.

    Args:
        teacher: it sees each image `passes` times.
        target: images (B, 3, H, W) in [0, 1].
        passes: at least 1.
        noise: standard deviation of the normal noise that is added to the images, cut off at twice as much; 0 = none.
        seed: key of the run and stage.
    """
    total: Tensor | float = 0.0
    for number in range(passes):
        image = target.image
        if noise:
            shape = tuple(image.shape[1:])
            drawn = [keyed(seed, i, number, "noise").standard_normal(shape, np.float32) for i in target.index.tolist()]
            moved = on_device(noise * np.stack(drawn).clip(-2, 2), image.device)
            image = image + moved.to(image.dtype)
        total = total + teacher(image).aux["coarse_logits"].softmax(1)
    mean = torch.as_tensor(total) / passes
    return -torch.xlogy(mean, mean).sum(1)


def entropy_threshold(step: int, *, ramp_steps: int, num_classes: int) -> float:
    """The entropy, in nats, below which a pixel is believed: from (0.75 + 0.25 e^-5) ln K at step 0 up to ln K.

    Source: CAMix (2108.03557), (0.75 + 0.25 e^(-5 (1 - t / t_max)^2)) ln K; checked against `sigmoid_ramp_up` of
    qianyuzqy/CAMix.
    """
    left = max(0.0, 1 - step / ramp_steps)
    return (0.75 + 0.25 * math.exp(-5 * left**2)) * math.log(num_classes)
