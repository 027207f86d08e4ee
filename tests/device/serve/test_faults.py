"""Every error of the toolchain has a status, and none shows a path."""

from __future__ import annotations

import inspect

import pytest

from toolchain.core import errors
from toolchain.core.errors import Da3Error, Fault, UnknownNameError
from toolchain.device.serve.faults import RefusedError, overloaded, refusal

SECRET = "/home/operator/secret"


def _raised(kind: type[Da3Error]) -> Da3Error:
    if kind is UnknownNameError:
        return UnknownNameError("model", "cars", [SECRET])
    if kind is errors.RecipeError:
        return errors.RecipeError(SECRET, [Fault("a", "b")])
    if kind is errors.MissingPackageError:
        return errors.MissingPackageError("waitress", "serving", "serve")
    return kind(f"cannot read {SECRET}", fix=f"look at {SECRET}")


ALL = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Da3Error)
]
# These speak of the request alone.
SPOKEN: dict[type[Da3Error], int] = {
    errors.DataError: 400,
    errors.UsageError: 400,
    errors.UnknownNameError: 404,
    errors.LoadedError: 409,
    errors.SessionLimitError: 409,
    errors.TimeLimitError: 504,
}
QUIET: dict[type[Da3Error], int] = {
    errors.ClosedError: 503,
    errors.OutOfMemoryError: 503,
    errors.BundleError: 422,
    errors.BackboneMismatchError: 422,
    errors.SelftestError: 422,
}


@pytest.mark.parametrize("kind", ALL)
def test_each_error_has_its_status(kind: type[Da3Error]) -> None:
    error = refusal(_raised(kind))
    assert error.status == {**SPOKEN, **QUIET}.get(kind, 500)
    assert (SECRET in error.message) == (kind in SPOKEN and kind is not UnknownNameError)
    assert error.hidden == (kind not in SPOKEN)


def test_an_error_that_is_none_of_ours_is_a_500() -> None:
    error = refusal(ValueError(SECRET))
    assert (error.status, error.message) == (500, "the server failed; its log says how")


def test_a_refusal_stays_what_it_is() -> None:
    error = overloaded("later")
    assert refusal(error) is error
    assert isinstance(error, RefusedError)
    assert (error.status, error.headers) == (503, {"Retry-After": "1"})
