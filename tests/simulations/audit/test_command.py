"""What ``fedward audit engine`` takes from a configuration."""

from __future__ import annotations

import configs
from client.audit.audit import Effort
from server.schedule import Schedule
from simulations.audit.command import _subject


def test_a_hospital_is_audited_over_as_many_rounds_as_it_is_asked_in() -> None:
    settings = ["federation.num_sites=6", "federation.sites_per_round=2", "federation.rounds=9"]
    effort = Effort()
    config = configs.load(settings, primary="audit")
    subject = _subject(config, effort)
    assert subject.rounds == Schedule.of(config).most_rounds
    assert 3 <= subject.rounds < 9
    assert _subject(configs.load(settings[::2], primary="audit"), effort).rounds == 9
