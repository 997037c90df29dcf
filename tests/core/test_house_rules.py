"""Rules of the house that no type checker knows: names, length, imports."""

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import accel
import accel.errors

ROOT = Path(__file__).parents[2]
CORE = Path(accel.__file__).parent
CORE_FILES = sorted(CORE.rglob("*.py"))

# -- public names ------------------------------------------------------------------------------

PUBLIC = [
    "accel", "accel.accelerator", "accel.contracts", "accel.engine", "accel.native", "accel.ops",
]  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name):
    module = import_module(name)
    missing = [public for public in module.__all__ if not hasattr(module, public)]
    assert not missing
    assert len(module.__all__) == len(set(module.__all__))


def test_the_public_names_of_accel_are_sorted_and_are_what_dir_shows():
    constants = sorted(n for n in accel.__all__ if n.isupper())
    classes = sorted(n for n in accel.__all__ if n[0].isupper() and not n.isupper())
    rest = sorted(n for n in accel.__all__ if n[0].islower())
    assert accel.__all__ == constants + classes + rest
    assert set(accel.__all__) <= set(dir(accel))
    assert set(accel._HOMES) <= set(accel.__all__), "nothing is public by accident"


def test_a_name_that_is_not_public_raises_as_usual():
    with pytest.raises(AttributeError, match="module 'accel' has no attribute 'linaer'"):
        accel.linaer  # noqa: B018


# -- the tree of errors ------------------------------------------------------------------------


def drawn(docstring):
    """(name, parent, other bases) of every line of the tree."""
    above = []
    for line in docstring.splitlines():
        found = re.match(r"    ([ │├└─]*)([A-Z]\w+)(?: +\((.*?)\))?", line)
        if found:
            indent, name, also = found.groups()
            depth = len(indent) // 4
            above[depth:] = [name]
            yield name, above[depth - 1] if depth else None, also.split(", ") if also else []


def test_the_tree_of_errors_is_drawn_as_it_is():
    tree = {name: (parent, also) for name, parent, also in drawn(accel.errors.__doc__)}
    defined = {
        name: [base.__name__ for base in value.__bases__]
        for name, value in vars(accel.errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert defined.pop("AccelError") == ["Exception"]
    assert tree.pop("AccelError") == (None, [])
    assert {name: ([parent] if parent else []) + also for name, (parent, also) in tree.items()} == (
        defined
    )


# -- no device name in core --------------------------------------------------------------------

DEVICES = {
    "cpu", "cuda", "xpu", "mps", "hip", "rocm", "npu", "hpu", "mlu", "musa", "tpu", "xla", "gpu",
    "nvidia", "amd", "intel", "apple", "ascend", "habana", "nccl", "rccl", "xccl", "ccl", "gloo",
    "hccl", "cudnn", "cublas", "mkl", "mkldnn", "onednn", "ipex", "metal", "sycl",
}  # fmt: skip
# os.cpu_count: how many compilers to run at once. The others are DeepSpeed's keys.
ALLOWED = ("cpu_count", "enable_cuda_graph", "bigscience_bloom")


def docstrings(tree):
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            yield id(body[0].value)


def written(tree):
    """Every identifier and every string constant that is no docstring, with its line."""
    told = set(docstrings(tree))
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "arg", "module", "asname"):
            text = getattr(node, field, None)
            if isinstance(text, str):
                yield getattr(node, "lineno", 0), text
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value


def words(text):
    """The words of an identifier or a sentence, in lower case."""
    for allowed in ALLOWED:
        text = text.replace(allowed, "")
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)}


def device_names(source):
    for line, text in written(ast.parse(source)):
        if DEVICES & words(text):
            yield line, text


@pytest.mark.parametrize("file", CORE_FILES, ids=lambda f: str(f.relative_to(CORE)))
def test_core_names_no_device(file):
    assert not list(device_names(file.read_text()))


NAMING = [
    "x.cuda()",
    "torch.xpu",
    "if device == 'cpu': pass",
    "x = 'cuda:0'",
    "f'on {x} of NVIDIA'",
    "def to_cpu(): pass",
    "class CudaThing: pass",
    "f(cuda=1)",
    "import torch.mps",
    "from accel_cpu import x",
    "backend = 'cpu:gloo,cuda:nccl'",
    "x = 1\n'''not a docstring: cuda'''",
]


@pytest.mark.parametrize("source", NAMING)
def test_a_device_name_is_found(source):
    assert list(device_names(source))


@pytest.mark.parametrize("source", ["'''cuda'''", "# cuda", "def f():\n  'cpu'", "accuda = 'mpsy'"])
def test_prose_and_other_words_are_not_device_names(source):
    assert not list(device_names(source))


# -- no architecture name outside the policies -------------------------------------------------

ARCHITECTURES = {
    "llama", "gpt", "gptj", "neox", "mistral", "mixtral", "qwen", "gemma", "opt", "bloom", "falcon",
    "phi", "olmo", "deepseek", "cohere", "starcoder", "codegen", "mpt", "granite", "stablelm",
}  # fmt: skip
# Not in the layers, one of which is BERT's. To clip is also what an engine does to gradients.
ENCODERS = {"bert", "roberta", "distilbert"}
ENGINE = CORE / "engine"
POLICIES = ENGINE / "policies"


def architecture_names(file):
    """In the engine also those in comments and docstrings, and device names there."""
    if ENGINE in file.parents:
        for line, text in enumerate(file.read_text().splitlines(), 1):
            if (ARCHITECTURES | ENCODERS | DEVICES) & words(text):
                yield line, text
        return
    for line, text in written(ast.parse(file.read_text())):
        if ARCHITECTURES & words(text):
            yield line, text


@pytest.mark.parametrize(
    "file",
    [file for file in CORE_FILES if POLICIES not in file.parents],
    ids=lambda f: str(f.relative_to(CORE)),
)
def test_only_policies_name_architectures(file):
    assert not list(architecture_names(file))


def test_an_architecture_name_is_found():
    """In every policy: its name, if nothing else."""
    files = sorted(
        set(POLICIES.glob("*.py")) - {POLICIES / "__init__.py", POLICIES / "clip_text.py"}
    )
    assert files
    assert all(list(architecture_names(file)) for file in files)
    assert words("class Gpt2Policy: LlamaForCausalLM # a cuda device") >= {"gpt", "llama", "cuda"}


# -- length of modules -------------------------------------------------------------------------

LIMIT = 300
LONGER = {
    "tests/backends/test_cpu_memory.py": "one counter, and the many things that allocate",
    "tests/backends/test_cuda.py": "one accelerator, member by member, on a stand-in for torch's",
    "tests/backends/test_xpu.py": "one accelerator, member by member, on a stand-in for torch's",
}
PLACES = ("*/src/**/*.py", "examples/**/*.py", "tests/**/*.py", "benchmarks/**/*.py")


def too_long(root):
    """Modules of the packages, as paths below ``root``, with more lines than the limit."""
    for file in sorted({file for place in PLACES for file in root.glob(place)}):
        lines = len(file.read_text().splitlines())
        if lines > LIMIT:
            yield file.relative_to(root).as_posix(), lines


def test_modules_are_short():
    found = dict(too_long(ROOT))
    assert found.keys() == LONGER.keys(), found


def test_a_long_module_is_found(tmp_path):
    folder = tmp_path / "dist" / "src" / "package"
    folder.mkdir(parents=True)
    (folder / "short.py").write_text("x\n" * LIMIT)
    (folder / "long.py").write_text("x\n" * (LIMIT + 1))
    assert dict(too_long(tmp_path)) == {"dist/src/package/long.py": LIMIT + 1}


# -- a refusal says what the user can do --------------------------------------------------------


def without_remedy(source):
    """Lines in which a Refusal is made of less than its four parts."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Refusal"):
            named = {keyword.arg for keyword in node.keywords}
            if len(node.args) < 4 and "remedy" not in named:
                yield node.lineno


def test_every_refusal_has_a_remedy():
    files = [*ROOT.glob("*/src/**/*.py"), *ROOT.glob("examples/*/src/**/*.py")]
    found = {f.relative_to(ROOT).as_posix(): list(without_remedy(f.read_text())) for f in files}
    lacking = {name: lines for name, lines in found.items() if lines and "/faults/" not in name}
    assert not lacking


def test_a_refusal_without_remedy_is_found():
    assert list(without_remedy("accel.Refusal('dtype', want, have)")) == [1]
    assert not list(without_remedy("Refusal('dtype', want, have=have, remedy='cast')"))


# -- no tolerance typed into a test ------------------------------------------------------------

DERIVED = {"tests/agreement.py"}  # from the roundoff
# Shares of budgets, bounds, and rounded figures of a report; not results.
OF_SHARES = {f"tests/conformance/test_{name}.py" for name in ("measure", "bounds", "report_page")}
TOLERANCES = {"rtol", "atol", "abs_tol", "rel_tol", "rel"}


def typed_tolerances(source):
    """Lines in which a call is given a number other than 0 for how far two results may differ."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg in TOLERANCES:
            numbers = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
            if any(isinstance(n, (int, float)) and n for n in numbers):
                yield node.value.lineno


def test_no_tolerance_is_typed_into_a_test():
    """It is a contract's, or derived from the roundoff by agreement.py. (What compares times,
    shares of budgets or counts says so by its own name.)"""
    files = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("examples/**/test_*.py")]
    found = {f.relative_to(ROOT).as_posix(): list(typed_tolerances(f.read_text())) for f in files}
    assert {name for name, lines in found.items() if lines} <= DERIVED | OF_SHARES


def test_a_typed_tolerance_is_found():
    assert list(typed_tolerances("allclose(a, b, rtol=1e-5, atol=0)")) == [1]
    assert list(typed_tolerances("x == approx(y, rel=2 * 10**-3)")) == [1]
    assert not list(typed_tolerances("assert_close(a, b, rtol=0, atol=bound)"))


# -- direction of imports ----------------------------------------------------------------------


def test_imports_point_one_way():
    """The arrows of `.importlinter`."""
    linter = pytest.importorskip("importlinter.cli")
    config = ROOT / ".importlinter"
    packages = re.search(r"root_packages =\n((?:    .*\n)+)", config.read_text())[1].split()
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    assert linter.lint_imports(config_filename=str(config), no_cache=True) == 0
