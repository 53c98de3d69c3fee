"""The codes of problems."""

from toolkit.submissions import checks


def test_codes_are_well_formed():
    for code, rule in checks.CODES.items():
        assert code.startswith("SUB")
        assert len(code) == 6
        assert rule.what
        assert rule.hint.endswith(".")
