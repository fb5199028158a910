"""One thread, and the same examples on every run; `REPTOOL_EXAMPLES=2000` looks further."""

import os

os.environ["REPTOOL_CHECK"] = "1"  # what each phase hands on is checked

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "reptool",
    max_examples=int(os.environ.get("REPTOOL_EXAMPLES", "150")),
    derandomize="REPTOOL_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("reptool")


@pytest.fixture(autouse=True)
def _same_conditions() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
