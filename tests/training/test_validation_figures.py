"""The table of a validation."""

from pathmoe.training.validation_figures import table, validation_rows

FIGURES = {
    "val/loss": 4.0,
    "val/perplexity": 54.598,
    "val/bits_per_byte": 1.7466,
    "val/path_entropy_bits": 5.321,
    "val/path_entropy_ceiling_bits": 10.0,
    "val/adjacent_agreement": 0.7834,
    "val/adjacent_agreement_null": 0.25,
    "val/adjacent_mutual_information_bits": -0.0001,
}


def test_what_was_measured_is_said_in_words() -> None:
    assert table(validation_rows(FIGURES)).splitlines() == [
        "  validation perplexity     54.60",
        "  bits per byte             1.747",
        "  path entropy              5.32 bits of 10.00 that 1,024 tokens allow",
        "  adjacent-layer agreement  78.3% (by chance 25.0%), 0.00 bits shared",
    ]


def test_what_was_not_measured_is_left_out() -> None:
    assert validation_rows({}) == []
    assert validation_rows({"val/perplexity": 2.0}) == [("validation perplexity", "2.00")]


def test_a_long_value_gets_a_line_of_its_own() -> None:
    value = "x" * 70
    assert table([("checkpoint", value), ("name", "y")]) == f"  checkpoint\n    {value}\n  {'name':<24}  y"
