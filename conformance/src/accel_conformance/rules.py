"""The rules a backend must keep: what each broken rule in a report means."""

from __future__ import annotations

RULES: dict[str, str] = {
    # every case
    "works": "what is offered works: no exception where the request was accepted",
    "expectation": "an outcome that was written down still holds",
    # ops
    "served_by": "the implementation that ran is the one that was asked for",
    "result": "dtype, shape and device of the result are what the contract says",
    "accuracy": "rms and peak error against float64 stay within the contract's tolerance",
    "inputs_kept": "no bit of an argument's storage is changed",
    "fresh": "the result shares no memory with an argument or an earlier result",
    "repeatable": "the same call gives the same bits",
    "placed": "a result written to out is right, and where rows are exact of the same bits; "
    "nothing beside it is written",
    "gradient": "gradients are those of float64 within a stated multiple of the tolerance",
    "bad_input": "arguments that break the contract raise, and the message says what is wrong",
    "unharmed": "an op works as before after a call that raised",
    "rows": "a row's bits do not depend on how many rows stand beside it, nor on the threads",
    "agreement": "logprob gives the same bits of hidden rows and of the logits linear has of them",
    "contained": "NaN and infinity stay in the rows they came in, and are not lost there",
    # builders
    "family": "the builders of all families can be had by name, and an unknown name raises",
    "definition": "an implementation's fields have the right types and belong to its builder",
    "reasons": "reasons() gives a list of Refusal, the same one twice, and never raises",
    "loads": "an implementation that accepts a request loads to a callable",
    "serves": "an implementation accepts some sample in some dtype",
    # accelerator
    "identity": "names, indices and devices agree and round trip through torch.device",
    "types": "members return what they are documented to return",
    "computes": "the device computes right in every dtype it supports",
    "capability": "an ability that is claimed works; using one that is not raises with the reason",
    "streams": "streams nest, order work and are left on any way out",
    "events": "events order work and tell milliseconds",
    "memory": "memory figures are bytes of this device and move with its tensors",
    "pinning": "pinned memory is pinned, and unpinned memory is not",
    "random": "random number state round trips, and seeding reproduces",
    "profiling": "ranges open and close",
    "compile": "the compile backend is one torch knows, and an unknown one changes nothing",
    "environment": "environment variables are written where asked and nowhere else",
}
