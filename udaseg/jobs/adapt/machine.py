"""What the machine has to train with."""

from __future__ import annotations

import urllib.request

import torch
from huggingface_hub import constants

from udaseg.job_config import Adapt
from udaseg.jobs.adapt.choice import Machine
from udaseg.jobs.resources import usable_cores

_UNKNOWN_MEMORY = 16.0  # GiB, of a cluster's GPU, which this machine does not see


def find_machine(told: Adapt) -> Machine:
    """The GPU's memory, the cores, and whether weights can be fetched where that matters."""
    memory = None
    if told.cluster.gpu:
        here = torch.cuda.is_available()
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if here else _UNKNOWN_MEMORY
    needed = told.pretrained and told.weights is None and told.checkpoint is None
    return Machine(memory=memory, cores=usable_cores(), hub=needed and _hub_answers())


def _hub_answers() -> bool:
    if constants.HF_HUB_OFFLINE:  # the hub's own library would not ask it either
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5):
            return True
    except OSError:
        return False
