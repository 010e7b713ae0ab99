"""Whose noise may protect the patients: what a policy may say of it, and what it comes to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.agent import policy, rules
from client.agent.policy import parse, template
from client.agent.rules import Work
from common.config import Trust
from common.errors import UsageError
from common.messages import Reason
from common.secure_aggregation.roster import Roster
from common.secure_aggregation.terms import Terms, least_threshold
from simulations.cli import main

SHARED = "trust: {accepted: [secure_aggregation], least_sites: 4, least_colluders: 1}"


def test_without_a_word_of_it_only_the_hospitals_own_noise_counts(policy_text: str) -> None:
    for text in (policy_text, template()):
        assert parse(text).trust.accepted == (Trust.local,)
        assert not parse(text).trust.shares_noise


def test_the_templates_other_choice_is_one(policy_text: str) -> None:
    assert "trust" not in policy_text
    text = template()
    for old, new in (
        ("  accepted: [local]\n", ""),
        ("  # accepted:", "  accepted:"),
        ("  # least_", "  least_"),
        ("    # epsilon_alone: 20.0 #", "    epsilon_alone: 20.0 #"),
    ):
        assert old in text
        text = text.replace(old, new)
    found = parse(text)
    assert found.trust.accepted == (Trust.secure_aggregation,)
    assert (found.trust.least_sites, found.trust.least_colluders) == (4, 1)
    assert found.studies["my-study"].epsilon_alone == 20.0


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[secure_aggregation]", "[]", "trust.accepted: must name"),
        ("[secure_aggregation]", "[local, local]", "is for secure_aggregation only"),
        ("[secure_aggregation]", "[everybody]", "trust.accepted=everybody: must be one of local"),
        ("[secure_aggregation]", "[local]", "trust.least_sites: is for secure_aggregation only"),
        (", least_colluders: 1", "", "trust.least_colluders: missing"),
        ("least_sites: 4, ", "", "trust.least_sites: missing"),
        ("least_sites: 4", "least_sites: 2", "trust.least_colluders \\+ 2"),
        ("least_colluders: 1", "least_colluders: -1", "at least 0"),
        ("least_colluders: 1", "least_colluders: 1, colluders: 2", "trust.colluders: unknown"),
        (", epsilon_alone: 9.0", "", "studies.phantom.epsilon_alone: missing"),
        ("epsilon_alone: 9.0", "epsilon_alone: .inf", "epsilon_alone"),
        ("epsilon_alone: 9.0", "epsilon_alone: 0", "must be a number above 0"),
    ],
)
def test_a_slip_about_trust_is_refused_by_name(
    policy_text: str, old: str, new: str, complaint: str
) -> None:
    text = policy_text.replace("epsilon: 50.0", "epsilon: 50.0, epsilon_alone: 9.0") + SHARED
    assert parse(text).studies["phantom"].epsilon_alone == 9.0
    assert old in text
    with pytest.raises(UsageError, match=complaint):
        parse(text.replace(old, new))


def test_it_is_shown_in_words(policy_text: str) -> None:
    text = policy_text.replace("epsilon: 50.0", "epsilon: 50.0, epsilon_alone: 90.0") + SHARED
    said = "\n".join(policy.lines(parse(text)))
    assert "epsilon at most 50, 90 if no other hospital can be trusted" in said
    assert "noise: shared among hospitals, under secure aggregation" in said
    assert "a roster of at least 4 hospitals, of which at least 1 may collude" in said
    assert "noise: this hospital's own, the whole of it" in policy.lines(parse(policy_text))


def test_a_privacy_officer_reads_it_on_the_command_line(
    policy_text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def show(text: str) -> tuple[int, str, str]:
        path = tmp_path / "policy.yaml"
        path.write_text(text)
        path.chmod(0o644)
        monkeypatch.setattr(sys, "argv", ["fedward", "site", "policy", "show", str(path)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    text = policy_text.replace("epsilon: 50.0", "epsilon: 50.0, epsilon_alone: 90.0") + SHARED
    code, out, _ = show(text)
    assert (code, out.splitlines()) == (0, policy.lines(parse(text)))
    code, out, err = show(text.replace(", epsilon_alone: 90.0", ""))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "studies.phantom.epsilon_alone: missing" in err


def test_a_change_of_trust_is_named(policy_text: str) -> None:
    text = policy_text.replace("epsilon: 50.0", "epsilon: 50.0, epsilon_alone: 90.0")
    assert parse(text + SHARED).changed_from(parse(text)) == ("trust",)


def roster_of(count: int) -> Roster:
    return Roster.of({f"hospital-{n}": f"{n:064x}" for n in range(1, count + 1)})


@given(st.integers(2, 30), st.data())
def test_no_terms_that_are_weaker_than_the_policy_pass(count: int, data: st.DataObject) -> None:
    colluders = data.draw(st.integers(0, count - 2))
    threshold = least_threshold(count, colluders)
    roster = roster_of(count)
    terms = Terms(
        run_id="run",
        round=1,
        roster=roster.digest,
        num_sites=count,
        threshold=threshold,
        max_dropouts=data.draw(st.integers(0, count - threshold)),
        max_colluders=colluders,
        num_weights=10,
        modulus_bits=32,
        subject="0" * 64,
    )
    least_colluders = data.draw(st.integers(0, 10))
    least_sites = data.draw(st.integers(least_colluders + 2, 20))
    found = policy.Policy(
        studies={},
        smallest_noise_multiplier=1.0,
        smallest_expected_batch=1.0,
        largest_sampling_rate=1.0,
        largest_steps=1,
        models=(),
        trust=policy.TrustRules(
            accepted=(Trust.secure_aggregation,),
            least_sites=least_sites,
            least_colluders=least_colluders,
        ),
    )
    weak = count < least_sites or colluders < least_colluders
    assert rules.unpinned(found, terms, roster) is (Reason.weak_trust if weak else None)
    assert rules.unpinned(found, terms, None) is Reason.no_roster
    assert rules.unpinned(found, terms, roster_of(count + 1)) is Reason.another_roster


@pytest.mark.parametrize("trust", list(Trust))
def test_each_kind_of_trust_has_to_be_accepted(policy_text: str, trust: Trust) -> None:
    work = Work(study="phantom", model="test_vit", generator=False, num_patients=6, num_images=40)
    reason = None if trust is Trust.local else Reason.unapproved_trust
    assert rules.unsuited(parse(policy_text), work, trust) is reason
