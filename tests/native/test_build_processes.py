"""Several processes and one cache, as the conformance suite has it of any backend's library."""

from accel_conformance.rehearsal import rehearse


def test_a_killed_build_is_in_nobody_s_way_and_of_two_processes_one_builds(tiny):
    assert rehearse(tiny()) == []


def test_who_fails_to_build_is_told_with_the_compiler_s_words(tiny):
    found = rehearse(tiny(code="#error no answer"))
    assert len(found) == 3
    assert all("failed: status 1" in problem and "#error no answer" in problem for problem in found)
