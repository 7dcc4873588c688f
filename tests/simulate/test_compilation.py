import linecache
import warnings

import numba
import pytest

from simulate import _compilation
from simulate._compilation import compile_cached

SOURCE = "def double(number):\n    return 2 * number\n"


def function_of(filename):
    """The function of `SOURCE`, as if it were in a file."""
    linecache.cache[filename] = (len(SOURCE), None, SOURCE.splitlines(keepends=True), filename)
    names = {}
    exec(compile(SOURCE, filename, "exec"), names)
    return names["double"]


def test_without_a_folder_for_the_cache_functions_are_compiled_and_one_warning_says_so(tmp_path):
    _compilation._warn_once.cache_clear()
    # numba has no place for the code of a file that does not exist, as where no folder can be written
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(function_of("<no file>"))
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR") as warned:
        compiled = [compile_cached()(function_of("<no file>")) for _ in range(2)]
    assert len(warned) == 1
    assert [function(21) for function in compiled] == [42, 42]
    assert all(function.signatures for function in compiled)
    # control: a file in a folder that can be written
    (tmp_path / "doubling.py").write_text(SOURCE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compile_cached()(function_of(str(tmp_path / "doubling.py")))(21) == 42
    assert any(path.suffix == ".nbc" for path in tmp_path.rglob("*"))
