"""A choice made with `with` holds in its body, in its thread or task, and nowhere else."""

import asyncio
import threading

import pytest

import accel
from accel import registry, testing


def chosen():
    return accel.get_accelerator().name


def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture(autouse=True)
def _two():
    with testing.installed(testing.fake_backend("a", rank=2), testing.fake_backend("b")):
        yield


def test_scopes_nest():
    with accel.use_accelerator("b"):
        with accel.use_accelerator("a"):
            assert chosen() == "a"
        assert chosen() == "b"
    assert chosen() == "a"


def test_an_exception_ends_a_scope():
    with pytest.raises(KeyError), accel.use_accelerator("b"):
        raise KeyError
    assert chosen() == "a"


def test_another_thread_does_not_see_a_scope():
    with accel.use_accelerator("b"):
        assert in_thread(chosen) == "a"


def test_every_thread_sees_what_was_set():
    accel.set_accelerator("b")
    assert in_thread(chosen) == "b"


def test_tasks_keep_their_scopes_apart():
    async def task(name, turn, other):
        with accel.use_accelerator(name):
            turn.set()
            await other.wait()  # both are inside their scopes here
            return chosen()

    async def both():
        one, two = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("a", one, two), task("b", two, one)), chosen()

    assert asyncio.run(both()) == (["a", "b"], "a")


def test_a_task_inherits_the_scope_it_was_made_in():
    async def child():
        return chosen()

    async def parent():
        with accel.use_accelerator("b"):
            task = asyncio.create_task(child())
        return await task, chosen()

    assert asyncio.run(parent()) == ("b", "a")


def test_threads_that_ask_first_get_one_registry(monkeypatch):
    made = []
    slow = threading.Event()
    monkeypatch.setattr(registry.plugins, "discover", lambda: made.append(slow.wait(0.1)) or [])
    old = registry.swap(None)
    try:
        threads = [threading.Thread(target=registry.registry) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        registry.swap(old)
    assert len(made) == 1


def test_reset_forgets_the_choice_and_the_registry(monkeypatch):
    monkeypatch.setattr(
        registry.plugins,
        "discover",
        lambda: registry.plugins.from_objects([testing.fake_backend("later")]),
    )
    accel.set_accelerator("b")
    before = registry.registry()
    accel.reset()
    assert chosen() == "later"
    assert registry.registry() is not before


def test_installed_puts_back_what_was_there():
    accel.set_accelerator("b")
    with testing.installed(testing.fake_backend("inner")):
        assert chosen() == "inner"
    assert chosen() == "b"
