"""The numbered rules."""

from accel_conformance.rules import CHAPTERS, RULES


def test_numbers_are_given_once_and_in_order():
    numbers = [tuple(map(int, rule.number.split("."))) for rule in RULES.values()]
    assert numbers == sorted(set(numbers))
    assert {str(chapter) for chapter, _ in numbers} == set(CHAPTERS)
    assert all(name == rule.name for name, rule in RULES.items())
