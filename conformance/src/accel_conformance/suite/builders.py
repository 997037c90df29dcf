"""Op builders: what they list is well defined, what they say of a request is true to itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from accel.accelerator import Accelerator
from accel.errors import UnknownOpError
from accel.op_builder import FAMILIES, OpBuilder, Request
from accel.refusal import Refusal, sentence
from accel.torch_impls import ANY_DEVICE
from accel_conformance.case import Case, Evidence
from accel_conformance.subject import Subject
from accel_conformance.target import Target, name_of

# Codes of refusals for a library that is not there, or is one for another torch.
_OPTIONAL = frozenset({"library", "version"})


def cases(subject: Subject) -> Iterator[Case]:
    acc = subject.accelerator
    for family in FAMILIES:
        yield Case(f"builders/{family}", partial(family_is_offered, acc, family))
    yield Case("builders/unknown_name", partial(unknown_name_raises, acc))
    for target in subject.targets:
        dtypes = subject.dtypes(target)
        about = f"builders/{target.op}/{target.impl.id}"
        who = (target.op, target.impl.id)
        yield Case(f"{about}/definition", partial(definition, subject, target), *who)
        yield Case(f"{about}/reasons", partial(reasons, target, dtypes), *who)
        yield Case(f"{about}/loads", partial(loads, target, dtypes), *who)
        yield Case(f"{about}/serves", partial(serves, target, dtypes), *who)


def family_is_offered(acc: Accelerator, family: str, seen: Evidence) -> None:
    cls, builder = acc.get_op_builder(family), acc.create_op_builder(family)
    if seen.expect("family", _is_builder_class(cls), f"get_op_builder gives {cls!r}, no class"):
        seen.expect("family", cls.family() == family, f"get_op_builder gives a {cls.family()}")
    seen.expect("family", isinstance(builder, cls), f"create_op_builder gives {builder!r:.80}")
    served = {ANY_DEVICE, acc.device_type}
    says = f"it is for devices of type {builder.device_type!r}, not {acc.device_type!r}"
    seen.expect("family", builder.device_type in served, says)


def unknown_name_raises(acc: Accelerator, seen: Evidence) -> None:
    for ask in (acc.get_op_builder, acc.create_op_builder):
        try:
            found = ask("LinaerBuilder")
        except UnknownOpError as error:
            offered = "LinearBuilder" in str(error)
            seen.expect("family", offered, f"{error} does not offer LinearBuilder")
        else:
            seen.expect("family", False, f"{ask.__name__}('LinaerBuilder') gives {found!r:.80}")


def definition(subject: Subject, target: Target, seen: Evidence) -> None:
    impl, builder, contract = target.impl, target.builder, target.contract
    fields = {"priority": int, "shape_invariant": bool, "differentiable": bool,
              "reads_shapes": bool}  # fmt: skip
    for name, kind in fields.items():
        value = getattr(impl, name)
        seen.expect("definition", type(value) is kind, f"{name} is {value!r}, not {kind.__name__}")
    family = builder.family()
    says = f"{target.op} belongs to {contract.family}; this builder is a {family}"
    seen.expect("definition", family == contract.family, says)
    build = builder.needs_build()
    seen.expect("definition", type(build) is bool, f"needs_build() is {build!r}, not a bool")
    listed = ", ".join(sorted(map(name_of, impl.dtypes)))
    says = f"the device computes in none of the dtypes it lists: {listed}"
    seen.expect("definition", bool(subject.dtypes(target)), says)


def reasons(target: Target, dtypes: list[torch.dtype], seen: Evidence) -> None:
    """For every sample and dtype, with shapes known and not, with gradient and without."""
    for request in _requests(target, dtypes):
        once = target.builder.reasons(target.impl, request)
        again = target.builder.reasons(target.impl, request)
        if _well_formed(seen, request, once):
            says = f"{request} is refused by {once} and then by {again}"
            seen.expect("reasons", once == again, says)


def loads(target: Target, dtypes: list[torch.dtype], seen: Evidence) -> None:
    """If anything is accepted; an implementation this machine cannot have refuses everything."""
    refusals = _refused_throughout(target, dtypes)
    if refusals:
        seen.refused(refusals)
        return
    kernel = target.builder.load(target.impl)
    seen.expect("loads", callable(kernel), f"load() gives {kernel!r:.80}, no callable")


def serves(target: Target, dtypes: list[torch.dtype], seen: Evidence) -> None:
    """One that refuses everything here cannot be proved here. That is no pass, and where a library
    that users may do without is not installed, no failure either."""
    refusals = _refused_throughout(target, dtypes)
    if refusals and all(refusal.code in _OPTIONAL for refusal in refusals):
        seen.refused(refusals)
        return
    says = f"refuses every sample in every dtype: {sentence(refusals)}"
    seen.expect("serves", not refusals, says)


def _refused_throughout(target: Target, dtypes: list[torch.dtype]) -> list[Refusal]:
    """Why the first request is refused, if all of them are; empty if one is accepted."""
    first: list[Refusal] = []
    for request in _requests(target, dtypes):
        refusals = target.builder.reasons(target.impl, request)
        if not refusals:
            return []
        first = first or refusals
    return first


def _requests(target: Target, dtypes: list[torch.dtype]) -> Iterator[Request]:
    gradients = (False, True) if target.impl.differentiable else (False,)
    for dtype in dtypes:
        for sample in target.contract.samples():
            args = sample.make(dtype, target.device)
            for grad in gradients:
                yield target.request(args, grad=grad, shapes=target.impl.reads_shapes)
                if target.impl.reads_shapes:
                    yield target.request(args, grad=grad, shapes=False)


def _well_formed(seen: Evidence, request: Request, answer: object) -> bool:
    says = f"{request} is answered by {answer!r:.120}, not by a list of Refusal"
    listed = isinstance(answer, list) and all(isinstance(item, Refusal) for item in answer)
    if not seen.expect("reasons", listed, says):
        return False
    assert isinstance(answer, list)
    for refusal in answer:
        seen.expect_whole("reasons", refusal)
    return True


def _is_builder_class(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, OpBuilder)
