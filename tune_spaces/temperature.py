"""The temperature of the pixel-prototype contrast."""

from ray import tune

RECIPE = "bcl_small"
METRIC = "information"
SPACE = {"method.temperature": tune.loguniform(0.02, 1.0)}
