"""Every state of SLURM has a phase, and every end a meaning."""

import pytest

from cellmap_core.cluster.states import STATES, End, Phase, end_of, phase_of

#: Of the manual of squeue, "JOB STATE CODES", and of sacct.
DOCUMENTED = """
BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY
PENDING PREEMPTED RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED
SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED SUSPENDED TIMEOUT
""".split()  # noqa: SIM905 - a list as the manual has it


def test_every_documented_state_is_known():
    assert set(DOCUMENTED) <= STATES


@pytest.mark.parametrize("state", sorted(STATES))
def test_every_state_has_one_phase_and_an_end_only_when_ended(state):
    if phase_of(state) is Phase.ENDED:
        assert isinstance(end_of(state), End)
    else:
        with pytest.raises(KeyError):
            end_of(state)


def test_a_state_of_a_later_version_ends_nothing():
    assert phase_of("TELEPORTING") is Phase.RUNNING
    assert phase_of("") is Phase.RUNNING


@pytest.mark.parametrize("said", ["CANCELLED by 1000", "CANCELLED+", "cancelled", " CANCELLED "])
def test_accounting_says_the_same_in_other_words(said):
    assert end_of(said) is End.CANCELLED


@pytest.mark.parametrize(
    ("state", "goes_on"),
    [
        ("TIMEOUT", True),
        ("NODE_FAIL", True),
        ("PREEMPTED", True),
        ("BOOT_FAIL", True),
        ("FAILED", False),
        ("CANCELLED", False),
        ("OUT_OF_MEMORY", False),
        ("COMPLETED", False),
    ],
)
def test_only_what_the_cluster_took_away_goes_on(state, goes_on):
    assert end_of(state).goes_on is goes_on
