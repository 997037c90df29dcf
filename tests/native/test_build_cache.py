"""The cache of built libraries in one process: keys, damage, locks, cleaning."""

import fcntl
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from accel.errors import BuildError, BuildTimeoutError, CacheError, ConfigError
from accel.native import NativeLibrary, Source
from accel.native import cache as build_cache


def folders(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_a_library_is_built_once_and_then_found(tiny, cache, compiler, capfd):
    assert not tiny().is_built()
    assert tiny().load().answer() == 42
    assert "accel: compiled tiny in " in capfd.readouterr().err
    calls = compiler.calls()
    again = tiny()
    assert again.is_built()
    assert again.load().answer() == 42
    assert compiler.calls() == calls
    assert capfd.readouterr().err == ""
    assert folders(cache) == [again.entry.stem]


def test_threads_build_once(tiny, compiler):
    library = tiny()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: library.load().answer(), range(12)))
    assert answers == [42] * 12
    assert compiler.compilations() == 1


def test_two_objects_for_one_library_build_once_even_in_threads(tiny, compiler):
    libraries = [tiny(), tiny()]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(NativeLibrary.build, libraries))
    assert compiler.compilations() == 1


# -- the key -----------------------------------------------------------------------------------


def key(library):
    return library.entry.stem.rpartition("-")[2]


def test_the_key_stays_where_nothing_changes(tiny, tmp_path):
    assert key(tiny()) == key(tiny())
    assert key(tiny()) == key(tiny(folder=tmp_path / "elsewhere")), "content counts, not place"


def test_the_key_is_the_same_in_another_process(tiny):
    library = changed_source_flags(tiny)
    assert key(pickle.loads(pickle.dumps(library))) == key(library)


def changed_flags(tiny):
    return tiny(flags=("-O1",))


def changed_source(tiny):
    return tiny(code='extern "C" int answer() { return 1; }')


def changed_header(tiny):
    return tiny(number=43)


def changed_source_flags(tiny):
    library = tiny()
    (source,) = library.sources
    return NativeLibrary("tiny", [Source(source.path, ("-DX",))], headers=library.headers,
                         flags=library.flags, libraries=())  # fmt: skip


def changed_libraries(tiny):
    library = tiny()
    return NativeLibrary("tiny", library.sources, headers=library.headers, flags=library.flags,
                         libraries=("c10",))  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [changed_flags, changed_source, changed_header, changed_source_flags, changed_libraries],
)
def test_the_key_changes_with_what_a_library_is_built_from(tiny, change):
    before = key(tiny())
    assert key(change(tiny)) != before


def test_the_key_changes_with_torch(tiny, monkeypatch):
    before = key(tiny())
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert key(tiny()) != before


def test_the_users_own_flags_come_last_and_change_the_key(tiny, monkeypatch):
    code = 'extern "C" __attribute__((visibility("default"))) int answer() { return NUMBER; }'
    flags = ("-DNUMBER=1",)
    before = key(tiny(code=code, flags=flags))
    monkeypatch.setenv("ACCEL_CXXFLAGS", "-UNUMBER '-DNUMBER= 7'")
    library = tiny(code=code, flags=flags)
    assert key(library) != before
    assert library.load().answer() == 7


def test_flags_that_cannot_be_split_are_a_clear_error(tiny, monkeypatch):
    monkeypatch.setenv("ACCEL_CXXFLAGS", "-O1 'x")
    with pytest.raises(ConfigError, match=r"ACCEL_CXXFLAGS=.*cannot be split into words"):
        tiny().build()


def test_what_changed_is_built_and_loaded_beside_the_old(tiny, cache):
    assert tiny(number=1).load().answer() == 1
    assert tiny(number=2).load().answer() == 2
    assert len(folders(cache)) == 2


# -- damage ------------------------------------------------------------------------------------


def truncate(entry):
    entry.path.write_bytes(entry.path.read_bytes()[:100])


def flip_a_bit(entry):
    data = bytearray(entry.path.read_bytes())
    data[len(data) // 2] ^= 1
    entry.path.write_bytes(data)


def remove_library(entry):
    entry.path.unlink()


def remove_manifest(entry):
    (entry.folder / build_cache.MANIFEST).unlink()


def manifest(text):
    def write(entry):
        (entry.folder / build_cache.MANIFEST).write_text(text)

    write.__name__ = f"manifest_{text}"
    return write


DAMAGE = [
    truncate, flip_a_bit, remove_library, remove_manifest,
    manifest("{"), manifest("[]"), manifest("{}"), manifest(json.dumps({"sha256": "0" * 64})),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_built_again_with_a_word(tiny, cache, capfd, damage):
    tiny().build()
    capfd.readouterr()
    damage(tiny().entry)
    assert not tiny().is_built()
    assert tiny().load().answer() == 42
    assert f"{tiny().entry.folder} is damaged; building tiny again" in capfd.readouterr().err
    assert folders(cache) == [tiny().entry.stem]


def test_remains_of_killed_builds_are_swept(tiny, cache):
    remains = cache / f"{tiny().entry.stem}.tmp-1-x"
    remains.mkdir(parents=True)
    (remains / "0_tiny.o").touch()
    tiny().build()
    assert folders(cache) == [tiny().entry.stem]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_build_that_ends_in_an_exception_leaves_nothing(tiny, cache, error):
    def make(folder):
        (folder / "half").touch()
        raise error

    with pytest.raises(error):
        tiny().entry.ensure(make)
    assert folders(cache) == []
    assert tiny().load().answer() == 42


# -- a cache that cannot be used ---------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "below_a_file", "no_files"])
def test_a_cache_that_cannot_be_written_says_so_and_how_to_help(tiny, tmp_path, monkeypatch, place):
    file = tmp_path / "file"
    file.touch()
    cache = {"file": file, "below_a_file": file / "x", "no_files": "/proc/accel"}[place]
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(cache))
    library = tiny()
    with pytest.raises(CacheError) as caught:
        library.load()
    assert isinstance(caught.value, OSError)
    assert str(cache) in str(caught.value)
    assert "set ACCEL_CACHE_DIR to a folder you can write to" in str(caught.value)
    if place != "no_files":  # where permissions allow what the file system does not
        assert [refusal.code for refusal in library.refusals()] == ["cache"]


def test_a_full_disk_is_the_cache_s_fault(tiny):
    def make(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(CacheError, match="No space left"):
        tiny().entry.ensure(make)


def test_a_cache_below_the_home_folder_may_be_written_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/house")
    monkeypatch.setenv("ACCEL_CACHE_DIR", "~/kernels")
    assert str(build_cache.folder()) == "/house/kernels"


# -- locks -------------------------------------------------------------------------------------


@pytest.fixture
def held(tiny, cache):
    """The library's lock, held by somebody else until released."""
    cache.mkdir()
    with (cache / f"{tiny().entry.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(lock, fcntl.LOCK_UN)


def test_a_lock_held_too_long_is_an_error_that_names_it(tiny, held, monkeypatch, capfd):
    monkeypatch.setenv("ACCEL_BUILD_TIMEOUT", "0.2")
    with pytest.raises(BuildTimeoutError, match=r"tiny for more than 0\.2 s; it holds .*\.lock"):
        tiny().load()
    assert "waiting for another process that builds tiny" in capfd.readouterr().err
    assert issubclass(BuildTimeoutError, (BuildError, TimeoutError))
    held()
    assert tiny().load().answer() == 42


def test_a_lock_that_is_released_is_taken(tiny, held):
    threading.Timer(0.2, held).start()
    assert tiny().load().answer() == 42


def test_a_built_library_needs_no_lock(tiny, cache):
    tiny().build()
    with (cache / f"{tiny().entry.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert tiny().load().answer() == 42


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan"])
def test_a_timeout_is_a_positive_number_of_seconds(tiny, monkeypatch, seconds):
    monkeypatch.setenv("ACCEL_BUILD_TIMEOUT", seconds)
    with pytest.raises(ConfigError, match=f"ACCEL_BUILD_TIMEOUT='{seconds}' must be a positive"):
        tiny().load()


# -- cleaning ----------------------------------------------------------------------------------


def test_cleaning_removes_entries_and_remains_and_says_which(tiny, cache):
    entries = [tiny(number=n).entry for n in (1, 2)]
    for n in (1, 2):
        tiny(number=n).build()
    remains = cache / f"{entries[0].stem}.tmp-1-x"
    remains.mkdir()
    assert set(build_cache.clean()) == {entries[0].folder, entries[1].folder, remains}
    assert folders(cache) == []
    assert build_cache.clean() == []
    assert tiny(number=1).load().answer() == 1, "and it can be built again"


def test_cleaning_leaves_a_build_under_way_alone(tiny, cache, held, capfd):
    under_way = cache / f"{tiny().entry.stem}.tmp-1-x"
    under_way.mkdir()
    other = tiny("other")
    other.build()
    assert build_cache.clean() == [other.entry.folder]
    assert under_way.exists()
    assert "is held by a build under way; left alone" in capfd.readouterr().err


def test_cleaning_a_cache_that_is_not_there_removes_nothing(cache):
    assert build_cache.clean() == []
