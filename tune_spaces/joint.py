"""Temperature, thresholds and prototype momentum together."""

from tune_spaces import prototype_momentum, temperature, thresholds

RECIPE = "bcl_paper_small"
METRIC = "information"
SPACE = {**temperature.SPACE, **thresholds.SPACE, **prototype_momentum.SPACE}
