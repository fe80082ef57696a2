import pickle

import pytest

from megatron_rapo.data.numbers import WrittenNumber, decimal_text, plain, without_exponent


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("0.00005", "0.00005"),
        ("5e-05", "0.00005"),
        ("1e-3", "0.001"),
        ("-2.50E-7", "-0.000000250"),
        ("5.0", "5"),
        ("-0.0", "0"),
        ("1.10", "1.10"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("1E3", "1000"),
        ("1e23", "1" + 23 * "0"),
        ("123456789012345678901234567890.5", "123456789012345678901234567890.5"),
        ("1e400", "1" + 400 * "0"),  # no float
        ("1e-400", "0." + 399 * "0" + "1"),
    ],
)
def test_a_number_as_it_is_written_without_exponent(written, text):
    assert decimal_text(WrittenNumber(written)) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0.00005, "0.00005"), (1e-7, "0.0000001"), (70.0, "70"), (1e23, "1" + 23 * "0"), (-3, "-3")]
)
def test_a_number_that_was_never_text(number, text):
    assert decimal_text(number) == text


@pytest.mark.parametrize("written", ["nan", "inf", "1e4000", "1e-4000", "1e999999999", "-1e-99999999999999999999999"])
def test_what_is_not_finite_or_too_long(written):
    assert decimal_text(WrittenNumber(written)) is None


def test_the_repr_of_a_float():
    """The form that an author would write is unchanged: there, e is Euler's number."""
    given = ["5e-05", "-1.25e-07", "2e-10", "2e-5", "e-05", "3e+05", "x5e-05", "007"]
    assert [without_exponent(text) for text in given] == ["0.00005", "-0.000000125", *given[2:]]


def test_a_written_number_is_a_float():
    number = WrittenNumber("0.00005")
    assert number == 5e-05 and 2 * number == 1e-4
    copied = pickle.loads(pickle.dumps(number))
    assert (copied, copied.text) == (5e-05, "0.00005")
    nested = plain({"a": [number, {"b": number}, "x", None, True]})
    assert nested == {"a": [5e-05, {"b": 5e-05}, "x", None, True]} and type(nested["a"][0]) is float
