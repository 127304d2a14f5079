"""Bisection on functions whose answer is known, and the correction of a student that missed the wish."""

import math

import pytest

from realign_pipes.sweep.search import LoseAtMost, Measured, Save, UnreachableError, bisect, corrected


def measured(alpha, saved=0.0, lost=0.0, kind="merge"):
    return Measured(
        kind=kind,
        alpha=alpha,
        saved=saved,
        saved_low=saved,
        saved_high=saved,
        pass_at_1=0.9 - lost,
        difference=-lost,
        difference_low=-lost,
    )


class Knob:
    """Saves 1 - exp(-alpha / 4) of the tokens, and loses (alpha / 10)^2 of pass@1."""

    def __init__(self):
        self.asked = []

    def __call__(self, alpha):
        self.asked.append(alpha)
        return measured(alpha, 1 - math.exp(-alpha / 4), (alpha / 10) ** 2)


def search(wish, low, high, **options):
    knob = Knob()
    ends = knob(low), knob(high)
    found = bisect(knob, *ends, wish, **{"tolerance": 0.001, "steps": 20, **options})
    return found, knob.asked[2:]


@pytest.mark.parametrize("share", [0.05, 0.4, 0.6, 0.9])
def test_a_share_to_save_is_found_to_within_the_tolerance(share):
    found, _ = search(Save(share), 0.0, 10.0)
    assert found.saved == pytest.approx(share, abs=0.001)
    assert found.alpha == pytest.approx(-4 * math.log(1 - share), abs=0.02)


def test_a_share_to_write_more_is_found_below_zero():
    found, _ = search(Save(-0.2), -2.0, 0.0)
    assert found.alpha == pytest.approx(-4 * math.log(1.2), abs=0.02)


def test_every_step_halves_what_is_left_and_the_nearest_is_taken():
    _, asked = search(Save(0.4), 0.0, 8.0, tolerance=1e-9, steps=3)
    assert asked == [4.0, 2.0, 3.0]  # the answer is 2.04
    found, _ = search(Save(0.4), 0.0, 8.0, tolerance=1e-9, steps=3)
    assert found.alpha == 2.0


def test_an_end_that_fulfils_the_wish_needs_no_step():
    found, asked = search(Save(1 - math.exp(-1)), 0.0, 4.0)
    assert (found.alpha, asked) == (4.0, [])


@pytest.mark.parametrize("loss", [0.0025, 0.01, 0.04, 0.25])
def test_the_most_is_saved_that_does_not_lose_more(loss):
    found, _ = search(LoseAtMost(loss), 0.0, 10.0)
    assert -found.difference <= loss
    assert found.alpha == pytest.approx(10 * math.sqrt(loss), abs=0.02)


@pytest.mark.parametrize(
    ("wish", "ends"), [(Save(0.95), (0.0, 10.0)), (Save(-0.9), (-2.0, 0.0)), (LoseAtMost(0.5), (0.0, 5.0))]
)
def test_a_wish_beyond_an_end_is_refused_without_a_step(wish, ends):
    knob = Knob()
    low, high = map(knob, ends)
    with pytest.raises(UnreachableError):
        bisect(knob, low, high, wish, tolerance=0.001, steps=20)
    assert knob.asked == list(ends)


def test_a_loss_of_exactly_what_is_allowed_is_allowed():
    one = measured(1, 0.2).model_copy(update={"difference": 0.97 - 0.98})
    assert -one.difference > 0.01  # in floating point
    assert LoseAtMost(0.01).missed_by(one) == 0 and LoseAtMost(0.01).excess(one) == 0


def test_of_several_the_wish_takes_the_nearest_or_the_largest_saving_that_is_allowed():
    some = [measured(1, 0.2, 0.0), measured(2, 0.35, 0.01), measured(3, 0.5, 0.03)]
    assert Save(0.4).best(some) is some[1]
    assert LoseAtMost(0.01).best(some) is some[1]
    assert LoseAtMost(0.02).best([*some[2:], measured(4, 0.6, 0.05)]) is some[2]  # none is allowed: the least loss
    assert (Save(0.4).missed_by(some[2]), Save(0.4).missed_by(some[0])) == pytest.approx((0.1, 0.2))
    assert (LoseAtMost(0.01).missed_by(some[0]), LoseAtMost(0.01).missed_by(some[2])) == pytest.approx((0.0, 0.02))


KNOB = [measured(0, 0.0, 0.0), measured(4, 0.6, 0.06), measured(2, 0.4, 0.02)]


class TestCorrection:
    @pytest.mark.parametrize(("student", "alpha"), [(0.45, 1.75), (0.35, 2.5), (0.7, 0.5), (0.21, 3.9)])
    def test_the_student_is_as_far_from_the_knob_there_as_here(self, student, alpha):
        """A student that saves 5 points more than the knob's 40 needs the alpha where the knob saves 35, and so on."""
        found = corrected(KNOB, KNOB[2], measured(2, student, kind="trra"), Save(0.4))
        assert found == pytest.approx(alpha)

    @pytest.mark.parametrize(("student", "alpha"), [(0.1, 4), (0.9, 2)])
    def test_it_stays_within_what_was_measured_and_is_never_the_reference(self, student, alpha):
        assert corrected(KNOB, KNOB[2], measured(2, student, kind="trra"), Save(0.4)) == alpha

    def test_below_zero(self):
        knob = [measured(-1, -0.3), measured(0, 0.0), measured(-0.5, -0.1)]
        student = measured(-0.5, -0.05, kind="trra")
        assert corrected(knob, knob[2], student, Save(-0.1)) == pytest.approx(-0.625)
        assert corrected(knob, knob[2], measured(-0.5, -0.5, kind="trra"), Save(-0.1)) == -0.5

    def test_a_student_that_loses_too_much_goes_back(self):
        student = measured(2, 0.4, 0.03, kind="trra")  # a point more than the knob
        assert corrected(KNOB, KNOB[2], student, LoseAtMost(0.02)) == pytest.approx(1.0)
