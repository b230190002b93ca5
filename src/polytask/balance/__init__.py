"""How the losses of the tasks become one: a balancer gives each task its weight in every step."""

from inspect import signature
from typing import Any

from polytask.balance.alignment import AlignedMtl, ConFig, ImtlG
from polytask.balance.bargaining import FairGrad, NashMtl
from polytask.balance.base import Balance, Balancer, Looking, Signal, State
from polytask.balance.cagrad import CaGrad
from polytask.balance.dwa import Dwa
from polytask.balance.famo import Famo
from polytask.balance.fixed import Fixed, Schedule, Unitary
from polytask.balance.magnitudes import DbMtl, GradNorm, MetaBalance
from polytask.balance.mgda import Mgda
from polytask.balance.momentum import ExcessMtl, Moco
from polytask.balance.projection import DualProj, UpGrad
from polytask.balance.rlw import Rlw
from polytask.balance.scales import Gls, LossScale, Stch
from polytask.balance.surgery import GradCraft, GradVac, PcGrad
from polytask.balance.uncertainty import ImtlL, Uncertainty
from polytask.errors import ConfigError, did_you_mean

BALANCERS: dict[str, type[Any]] = {
    "fixed": Fixed,
    "unitary": Unitary,
    "schedule": Schedule,
    "loss_scale": LossScale,
    "gls": Gls,
    "stch": Stch,
    "uncertainty": Uncertainty,
    "imtl_l": ImtlL,
    "rlw": Rlw,
    "dwa": Dwa,
    "famo": Famo,
    "gradnorm": GradNorm,
    "mgda": Mgda,
    "pcgrad": PcGrad,
    "gradvac": GradVac,
    "cagrad": CaGrad,
    "imtl_g": ImtlG,
    "nash_mtl": NashMtl,
    "fairgrad": FairGrad,
    "aligned_mtl": AlignedMtl,
    "upgrad": UpGrad,
    "dualproj": DualProj,
    "conflict_free": ConFig,
    "metabalance": MetaBalance,
    "db_mtl": DbMtl,
    "gradcraft": GradCraft,
    "moco": Moco,
    "excess_mtl": ExcessMtl,
}

__all__ = ["BALANCERS", "Balance", "Balancer", "Fixed", "Looking", "Signal", "State", "make_balancer"]


def make_balancer(balance: Balance) -> Balancer:
    """The balancer of a choice; an unknown kind, option or value is a :class:`ConfigError`."""
    if balance.kind not in BALANCERS:
        raise ConfigError(did_you_mean("balance", balance.kind, BALANCERS))
    make = BALANCERS[balance.kind]
    known = [n for n, p in signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY]
    options = dict(balance.options)
    for name in options:
        if name not in known:
            raise ConfigError(did_you_mean(f"option of balance '{balance.kind}'", name, known or ["(none)"]))
    try:
        balancer: Balancer = make(**options)
    except ConfigError as error:
        raise ConfigError(f"balance '{balance.kind}': {error}") from None
    if balancer.needs == "losses" and not balance.exact:
        raise ConfigError(f"balance '{balance.kind}' reads losses, not gradients: leave out every, share and at")
    if balancer.needs == "jacobian" and balance.at == "tables":
        raise ConfigError(f"balance '{balance.kind}' reads the trunk's gradients: set at = \"parameters\"")
    if getattr(balancer, "by_parameter", False) and not balance.exact:
        raise ConfigError(f"balance '{balance.kind}' weighs each parameter: leave out every, share and at")
    return balancer
