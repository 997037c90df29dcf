"""The hybrid engine: one model, one copy of its weights, trained and generating bitwise alike.

engine.py      HybridEngine, what users hold       config.py    its settings
hybrid.py      hybridize and restore               planning.py  what is replaced, shown first
generation/    from prompts to answers             training/    from gradients to the next step
policy.py      reading an architecture             policies/    those the core can read
spec.py        what is read                        roles.py     which module does what
forward.py     what stands in a forward's place    modules/     the forwards of a model's parts
call.py        what a forward must know ...        calls.py     ... and what it is for
sequences.py   where the real tokens lie           cache.py     keys and values kept
reading.py     what policies share                 stats.py     time and tokens per phase
parallel/      ranks that share a rollout
fingerprint.py  whether weights are what they were
sharding.py    a model in shards                   gathering.py  how much of it is together
"""

from accel.engine.config import HybridEngineConfig
from accel.engine.engine import HybridEngine
from accel.engine.generation.rollout import Rollout
from accel.engine.hybrid import hybridize, restore
from accel.engine.planning import Plan, plan
from accel.engine.policy import ModelPolicy
from accel.engine.spec import DecoderSpec, EncoderSpec, LayerSpec

__all__ = [
    "DecoderSpec",
    "EncoderSpec",
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
