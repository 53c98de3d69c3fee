"""Which format a sample asks for, and what its columns hold."""

import pytest

from tests.submissions.cases import ANIMAL, NAMED, SICK, TAGS, VALID, competition, table
from toolkit.core.targets import Target
from toolkit.errors import CompetitionError
from toolkit.submissions.form.formats import FORMATS
from toolkit.submissions.form.layout import fit, infer_format


@pytest.mark.parametrize("case", VALID)
def test_the_format_of_every_sample_is_inferred(case):
    rules, sample, _ = VALID[case]
    assert infer_format(table(sample), rules) == NAMED.get(case, case)


def test_every_format_has_a_valid_case():
    assert {NAMED.get(case, case) for case in VALID} == set(FORMATS)


def test_the_format_of_the_file_wins_over_inference():
    assert infer_format(table("id,animal\n1,cat\n"), competition(ANIMAL, form="topk:2")) == "topk:2"
    with pytest.raises(CompetitionError, match="unknown submission format 'top5'"):
        infer_format(table("id,animal\n1,cat\n"), competition(ANIMAL, form="top5"))
    with pytest.raises(CompetitionError, match="binary"):
        infer_format(table("id,animal\n1,cat\n"), competition(ANIMAL, form="probability"))


@pytest.mark.parametrize(
    ("rules", "sample"),
    [
        (competition(SICK), "id,sick\n1,0.5\n"),  # the metric wants labels, the cells are none
        (competition(Target("pet", "binary", ("cat", "dog")), metric="log_loss"), "id,pet\n1,cat\n"),  # the other way round
        (competition(ANIMAL), "id,animal\n1,0\n"),  # an index? a placeholder?
        (competition(TAGS), "id,red,big,wet\n1,0.5,0.5,0.5\n"),
        (competition(ANIMAL), "id,cat,dog\n1,0,0\n"),
        (competition(ANIMAL, SICK), "id,answer\n1,cat\n"),
    ],
)
def test_what_is_ambiguous_is_asked_for(rules, sample):
    with pytest.raises(CompetitionError) as caught:
        infer_format(table(sample), rules)
    assert "Set format under [submission] in competition.toml" in caught.value.hint


def test_k_is_the_samples_or_the_competitions():
    sample = table("id,animal\n1,cat\n2,cat dog\n")
    assert fit("topk", sample, competition(ANIMAL)).columns[0].k == 2
    assert fit("topk:3", sample, competition(ANIMAL)).columns[0].k == 3
    with pytest.raises(CompetitionError, match="how many"):
        fit("topk", table("id,animal\n1,cat\n"), competition(ANIMAL))


def test_a_sample_without_the_id_column_is_refused():
    with pytest.raises(CompetitionError, match="needs column 'id'"):
        infer_format(table("image,animal\n1,cat\n"), competition(ANIMAL))
