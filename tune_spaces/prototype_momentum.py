"""The momentum of the class-wise domain bias that calibrates BCL's prototypes (`method.variant` "paper")."""

from ray import tune

RECIPE = "bcl_paper_small"
METRIC = "information"
SPACE = {"method.calibration_momentum": tune.choice([0.0, 0.9, 0.97, 0.99, 0.997, 0.999])}
