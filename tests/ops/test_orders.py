"""Reading orders: what a user wants, from text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.errors import ConfigError, UnknownOpError
from accel.ops.orders import Order, names_it, parse, position

KNOWN = ["reference", "torch", "accel_x.fast", "accel_x.slow", "accel_y.fast"]


def read(text):
    return parse(text, KNOWN)


READ = {
    "": {},
    " ; ;": {},
    "linear=torch": {"linear": Order(only=("torch",))},
    " linear = torch | reference ": {"linear": Order(only=("torch", "reference"))},
    "linear=!torch": {"linear": Order(never=("torch",))},
    "linear= ! torch | ! fast": {"linear": Order(never=("torch", "fast"))},
    "linear=fast|!accel_y.fast": {"linear": Order(only=("fast",), never=("accel_y.fast",))},
    "*=torch;linear=fast": {"*": Order(only=("torch",)), "linear": Order(only=("fast",))},
    "linear=torch;rms_norm=!torch;": {
        "linear": Order(only=("torch",)),
        "rms_norm": Order(never=("torch",)),
    },
}


@pytest.mark.parametrize(("text", "orders"), READ.items(), ids=list(READ))
def test_orders_are_read(text, orders):
    assert read(text) == orders


MALFORMED = {
    "linear": r"cannot read 'linear' in 'linear'; an order is \"op=a\|b\" or \"op=!a\"",
    "linear=": "cannot read 'linear='",
    "=torch": "cannot read '=torch'",
    "=": "cannot read '='",
    "linear:torch": "cannot read 'linear:torch'",
    "linear=torch;rms_norm": "cannot read 'rms_norm' in 'linear=torch;rms_norm'",
    "linear=torch||reference": "an implementation's name is missing",
    "linear=torch|": "an implementation's name is missing",
    "linear=!": "an implementation's name is missing",
    "linear=torch;linear=reference": "'linear' has two orders .*; join them with |",
}


@pytest.mark.parametrize(("text", "says"), MALFORMED.items(), ids=list(MALFORMED))
def test_what_cannot_be_read_is_said(text, says):
    with pytest.raises(ConfigError, match=says):
        read(text)


UNKNOWN = {
    "linaer=torch": "unknown op 'linaer' in 'linaer=torch'; did you mean 'linear'",
    "rms_norm=torch;norm=torch": "unknown op 'norm'",
    "linear=accel_x.fats": "unknown implementation 'accel_x.fats' .*did you mean 'accel_x.fast'",
    "linear=!toch": "unknown implementation 'toch'.*did you mean 'torch'",
    "linear=accel_x": "unknown implementation 'accel_x'",
    "linear=torch=reference": "unknown implementation 'torch=reference'",
    "linear=!!torch": "unknown implementation '!torch'",
}


@pytest.mark.parametrize(("text", "says"), UNKNOWN.items(), ids=list(UNKNOWN))
def test_what_is_not_known_is_answered_with_near_names(text, says):
    with pytest.raises(UnknownOpError, match=says):
        read(text)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("torch", ["torch"]),
        ("fast", ["accel_x.fast", "accel_y.fast"]),
        ("accel_x.fast", ["accel_x.fast"]),
        ("x.fast", []),
        ("ast", []),
    ],
)
def test_an_implementation_is_named_by_its_id_or_by_what_follows_the_dot(name, ids):
    assert [id for id in KNOWN if names_it(name, id)] == ids


def test_an_order_ranks_and_excludes():
    order = Order(only=("slow", "fast"), never=("accel_y.fast",))
    assert [position(order, id) for id in KNOWN] == [None, None, 1, 0, None]
    assert [position(Order(never=("fast",)), id) for id in KNOWN] == [0, 0, None, 0, None]


PIECES = ["linear", "rms_norm", "*", "torch", "fast", "nobody", "=", "=", "|", "!", ";", " "]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_text_is_read_or_refused_on_purpose(text):
    try:
        orders = read(text)
    except (ConfigError, UnknownOpError):
        return
    again = ";".join(f"{op}={order}" for op, order in orders.items())
    assert read(again) == orders, "an order prints as it is written"
