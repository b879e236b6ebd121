"""Which pseudo-labels a round keeps: a share of each class, and what is more certain than a fixed confidence."""

from ray import tune

RECIPE = "bcl_small"
METRIC = "information"
SPACE = {
    "pseudo_label.share": tune.loguniform(0.02, 0.8),
    "pseudo_label.cap": tune.uniform(0.8, 1.0),
}
