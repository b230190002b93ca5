"""PCGrad, GradVac and GradCraft: every task's gradient is changed where it conflicts with others, then all are summed."""

from typing import Literal, get_args

import torch
from torch import Tensor

from polytask.balance.average import Average
from polytask.balance.base import Needs, Signal, State
from polytask.balance.options import check_choice, check_number

Order = Literal["random", "fixed"]
