"""A worker that has rehearsed has really been through every stage."""

from core.pipeline import PipelineSettings
from service.packets import PacketSettings
from service.rehearsal import rehearse


def test_rehearsal_gets_as_far_as_packets() -> None:
    assert rehearse(PipelineSettings(), PacketSettings()) > 0
