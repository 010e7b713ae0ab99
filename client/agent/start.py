"""An agent with everything it owns, from ``site.yaml`` to an open socket."""

from __future__ import annotations

import logging

from client.agent import schema, service
from client.agent.agent import Agent
from client.agent.approval import Approvals
from client.agent.audit import FILE_NAME, AuditLog, Kind
from client.agent.hospital import open_hospital
from client.agent.site_file import SiteFile
from common.privacy.book import LedgerBook

_log = logging.getLogger("fedward.agent")


def run(file: SiteFile) -> None:
    """Answers requests about the site of ``file`` until SIGTERM or SIGINT.

    Raises:
        UsageError: The study, the settings or the socket are not as they should be.
        LedgerError: The key or the audit log cannot be used.
    """
    gate_uid = file.gate_uid()
    key = LedgerBook.at(file.ledgers).key
    approvals = Approvals(folder=file.approvals, key=key, published=file.published)
    approvals.publish()
    audit = AuditLog(file.state / FILE_NAME, key=key)
    try:
        hospital = open_hospital(file)
        work = hospital.work
        agent = Agent(
            site=hospital.site,
            work=work,
            policy=file.policy,
            approvals=approvals,
            audit=audit,
            sums=hospital.sums(file),
            gate_uid=gate_uid,
        )
        audit.append(
            Kind.started,
            {
                "site": file.name,
                "study": work.study,
                "model": work.model,
                "cohort": hospital.fingerprint,
                "num_patients": work.num_patients,
                "device": hospital.site.device.type,
            },
        )
        agent.look_at_policy()
        _log.info("%s listens at %s, trains on %s", file.name, file.socket, hospital.site.device)
        service.serve(agent, file.socket, most_bytes=schema.most_bytes(hospital.weights))
        audit.append(Kind.stopped, {})
    finally:
        audit.close()
