"""The hybrid engine: one model, one copy of its weights, trained and generating bitwise alike.

engine.py       HybridEngine, what users hold      config.py       its settings
hybrid.py       hybridize and restore              planning.py     what is replaced, shown first
policy.py       reading an architecture            policies/       those the core can read
spec.py         what is read                       roles.py        which module does what
modules/        the forwards that replace theirs   call.py         what a forward is for ...
calls.py        ... training, scoring, a step      sequences.py    where the real tokens lie
generation.py   the loop over tokens               request.py      what generate was asked
sampling.py     reproducible random tokens         cache.py        keys and values kept
stats.py        time and tokens per phase          reading.py      what policies share
"""

from accel.engine.config import HybridEngineConfig
from accel.engine.engine import HybridEngine
from accel.engine.generation import Rollout
from accel.engine.hybrid import hybridize, restore
from accel.engine.planning import Plan, plan
from accel.engine.policy import ModelPolicy
from accel.engine.spec import DecoderSpec, LayerSpec

__all__ = [
    "DecoderSpec",
    "HybridEngine",
    "HybridEngineConfig",
    "LayerSpec",
    "ModelPolicy",
    "Plan",
    "Rollout",
    "hybridize",
    "plan",
    "restore",
]
