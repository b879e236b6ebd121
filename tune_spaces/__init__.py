"""Search spaces of `udaseg sweep`, one module each.

RECIPE  the recipe that is swept unless `--recipe` names another
METRIC  what the trials are ranked by unless `--metric` names another
SPACE   a field's name, as on the command line of `udaseg train` -> its range
"""
