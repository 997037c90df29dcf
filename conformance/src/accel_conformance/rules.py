"""The rules a backend must keep, numbered: what each broken rule in a report means.

A number is given once and means the same in every version of the suite; new rules come last in
their chapter. A required rule is a claim that a backend need not make, or harm done to others: no
expectation excuses it. An optional one may be broken for a while by a backend that writes down
where, why and until when.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """``says`` in one sentence what holds; ``number`` is its chapter's and its own."""

    number: str
    name: str
    says: str
    required: bool = True

    @property
    def strength(self) -> str:
        return "required" if self.required else "optional"

    def __str__(self) -> str:
        return f"{self.number} {self.name}"


CHAPTERS = {
    "1": "Every case",
    "2": "Ops",
    "3": "Op builders",
    "4": "The accelerator",
    "5": "The engine",
}

_RULES = (
    Rule(
        "1.1",
        "works",
        "what is offered works: no exception where the request was accepted",
        required=False,
    ),
    Rule("1.2", "expectation", "an outcome that was written down still holds"),
    Rule("2.1", "served_by", "the implementation that ran is the one that was asked for"),
    Rule("2.2", "result", "dtype, shape and device of the result are what the contract says"),
    Rule(
        "2.3",
        "accuracy",
        "rms and peak error against float64 stay within the contract's tolerance",
        required=False,
    ),
    Rule("2.4", "inputs_kept", "no bit of an argument's storage is changed"),
    Rule("2.5", "fresh", "the result shares no memory with an argument or an earlier result"),
    Rule("2.6", "repeatable", "the same call gives the same bits", required=False),
    Rule(
        "2.7",
        "placed",
        "a result written to out is right, where rows are exact to the bit; nothing beside it is "
        "written",
    ),
    Rule(
        "2.8",
        "gradient",
        "gradients are those of float64 within a stated multiple of the tolerance",
        required=False,
    ),
    Rule(
        "2.9",
        "bad_input",
        "arguments that break the contract raise, and the message says what is wrong",
    ),
    Rule("2.10", "unharmed", "an op works as before after a call that raised"),
    Rule(
        "2.11",
        "rows",
        "a row's bits do not depend on how many rows stand beside it, nor on the threads",
    ),
    Rule(
        "2.12",
        "agreement",
        "logprob gives the same bits of hidden rows and of the logits linear has of them",
    ),
    Rule(
        "2.13",
        "contained",
        "NaN and infinity stay in the rows they came in, and are not lost there",
        required=False,
    ),
    Rule(
        "2.14",
        "padded",
        "a row's bits do not depend on NaN in rows beside it, nor a sequence's on its padding or "
        "on what it is packed with",
    ),
    Rule(
        "2.15",
        "opcheck",
        "the torch op's schema, fake and gradient are those of what it does, as torch checks them",
    ),
    Rule(
        "2.16",
        "compiled",
        "torch.compile makes one graph that names the implementation, with the eager results and "
        "gradients",
    ),
    Rule("2.17", "transforms", "vmap is a loop, and torch.func's gradients are autograd's"),
    Rule("2.18", "autocast", "under autocast an op computes in the dtypes its contract states"),
    Rule(
        "2.19",
        "componentwise",
        "each element is as near float64 as the roundings of its own terms let it be",
        required=False,
    ),
    Rule(
        "2.20",
        "whole",
        "where all that is summed are whole numbers small enough, the sum is exact",
        required=False,
    ),
    Rule(
        "2.21",
        "current",
        "a result is of the values that arguments have at the call, not of any they had before",
    ),
    Rule("2.22", "guarded", "nothing beside an argument's elements changes a result"),
    Rule(
        "2.23",
        "undisturbed",
        "threads, random numbers and defaults of torch are after a call what they were before",
    ),
    Rule(
        "2.24",
        "features",
        "an output feature's bits do not depend on which others are computed beside it",
    ),
    Rule(
        "2.25",
        "unseen",
        "a query's bits do not depend on NaN or infinity in keys and values that it does not see "
        "for where it stands",
    ),
    Rule(
        "3.1",
        "family",
        "the builders of all families can be had by name, and an unknown name raises",
    ),
    Rule(
        "3.2",
        "definition",
        "an implementation's fields have the right types and belong to its builder",
    ),
    Rule(
        "3.3",
        "reasons",
        "reasons() gives a list of Refusal, each with its remedy, the same one twice, and never "
        "raises",
    ),
    Rule("3.4", "loads", "an implementation that accepts a request loads to a callable"),
    Rule(
        "3.5",
        "serves",
        "an implementation accepts some sample in some dtype, if its library is there",
    ),
    Rule(
        "3.6",
        "cached",
        "of two processes that need a library one builds it, both load it, and what a killed build "
        "left is in nobody's way",
    ),
    Rule("4.1", "identity", "names, indices and devices agree and round trip through torch.device"),
    Rule("4.2", "types", "members return what they are documented to return"),
    Rule("4.3", "computes", "the device computes right in every dtype it supports"),
    Rule(
        "4.4",
        "capability",
        "an ability that is claimed works; using one that is not raises with the reason, which "
        "comes with a remedy",
    ),
    Rule("4.5", "streams", "streams nest, order work and are left on any way out"),
    Rule("4.6", "events", "events order work and tell milliseconds"),
    Rule("4.7", "memory", "memory figures are bytes of this device and move with its tensors"),
    Rule("4.8", "pinning", "pinned memory is pinned, and unpinned memory is not"),
    Rule("4.9", "random", "random number state round trips, and seeding reproduces"),
    Rule("4.10", "profiling", "ranges open and close", required=False),
    Rule(
        "4.11",
        "compile",
        "the compile backend is one torch knows, and an unknown one changes nothing",
        required=False,
    ),
    Rule("4.12", "environment", "environment variables are written where asked and nowhere else"),
    Rule("4.13", "independent", "random number state and seed are each device's own"),
    Rule(
        "5.1",
        "one_value",
        "a token's value is the same bits from sampler, generate, logprobs, the training forward's "
        "logits and the loss",
    ),
    Rule("5.2", "company", "a value does not depend on the batch around it, its row or its order"),
    Rule(
        "5.3",
        "padding",
        "a value does not depend on padding, its side, length or content",
    ),
    Rule(
        "5.4",
        "prefill",
        "a value does not depend on what was read at once and what step by step, nor on the size "
        "of the cache",
    ),
    Rule("5.5", "schedule", "a value does not depend on threads or on activation checkpointing"),
    Rule(
        "5.6",
        "positions",
        "positions count from a sequence's first real token, unless position_ids are given",
    ),
    Rule("5.7", "masked", "values of padding and behind an answer's end are 0 on both sides"),
    Rule(
        "5.8",
        "compute_dtype",
        "keys and values are kept in the weights' dtype, and autocast changes nothing",
    ),
    Rule(
        "5.9",
        "dropout",
        "dropout is off in generate and logprobs in any mode, and acts in a training step, which "
        "the plan says",
    ),
    Rule(
        "5.10",
        "adapter",
        "with LoRA a token's value is one as well, and an adapter that is off has no part in it",
    ),
    Rule(
        "5.11",
        "exact",
        "what is not shape-invariant is refused by name, and exact=False permits it and says what "
        "serves",
    ),
    Rule(
        "5.12",
        "untouched",
        "generating changes no weight, gradient, optimizer state, random state or mode, and sees "
        "the weights that the last step made",
    ),
    Rule(
        "5.13",
        "gradients_repeat",
        "gradients of one batch are the same bits again",
        required=False,
    ),
    Rule(
        "5.14",
        "faithful",
        "logits are as near to float64 as a stated multiple of the model's own error",
        required=False,
    ),
)

RULES: dict[str, Rule] = {rule.name: rule for rule in _RULES}
assert len(RULES) == len(_RULES), "a name is given once"
