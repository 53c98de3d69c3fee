"""What a submission says is what the predictions say that it was made of."""

import numpy as np
import pytest

from tests.submissions.cases import JOINT, TAGS, VALID, competition, soft, table
from toolkit.submissions.answers import of_frame, of_predictions
from toolkit.submissions.form.layout import fit, infer_format
from toolkit.submissions.sample import as_format, render

IDS = tuple(f"{i:03d}" for i in range(200))


@pytest.mark.parametrize("case", VALID)
def test_answers_of_a_file_are_those_of_the_predictions_it_was_made_of(case):
    rules, sample, _ = VALID[case]
    sample = table(sample)
    form = infer_format(sample, rules)
    fitted = fit(form, sample, rules)
    ids = ("003", "010", "001")
    known = {target.name: soft(target, ids=ids, seed=3) for target in rules.targets}
    written = render(known, as_format(sample, rules, form))
    back = {answers.name: answers for answers in of_frame(written, fitted)}
    said = {answers.name: answers for answers in of_predictions(fitted, known)}
    assert set(back) == set(said)
    for name, answers in back.items():
        place = [said[name].ids.index(i) for i in answers.ids]
        assert answers.classes == said[name].classes
        assert np.array_equal(answers.labels, said[name].labels[place])
        if answers.confidence is not None:
            assert np.allclose(answers.confidence, said[name].confidence[place], atol=1e-6)


def test_a_factor_is_a_question_of_its_own():
    known = soft(JOINT, ids=IDS)
    rules = competition(JOINT)
    fitted = fit("labels", table("id,age,mask\n003,old,on\n"), rules)
    found = {answers.name: answers for answers in of_predictions(fitted, {"kind": known})}
    assert found["age"].labels.tolist() == (known.decided % 3).tolist()
    assert found["mask"].labels.tolist() == (known.decided // 3).tolist()
    several = of_predictions(fit("flags", table("id,red,big,wet\n1,0,0,0\n"), competition(TAGS)), {"tags": soft(TAGS)})
    assert several[0].text(0) == " ".join(n for n, v in zip(TAGS.classes, soft(TAGS).values[0] >= 0.5, strict=True) if v)
