//! What each figure says, in a sentence for whoever meets it at `/metrics`. More of it:
//! `docs/metrics.md`.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Tells the recorder of this process.
pub(super) fn describe() {
    describe_times();
    describe_waits();
    describe_peers();
    describe_state();
}

fn describe_times() {
    describe_histogram!(
        "kontiki_proposal_seconds",
        Unit::Seconds,
        "Time from a proposal until it was persisted here, committed, applied and answered."
    );
    describe_histogram!(
        "kontiki_log_sync_seconds",
        Unit::Seconds,
        "Time that a sync of the log takes."
    );
}

fn describe_waits() {
    describe_gauge!(
        "kontiki_queue_length",
        Unit::Count,
        "What waits for the node loop: requests, and messages of each lane."
    );
    describe_gauge!(
        "kontiki_unanswered_requests",
        Unit::Count,
        "Requests at this node that have no answer yet."
    );
    describe_gauge!(
        "kontiki_oldest_write_seconds",
        Unit::Seconds,
        "For how long the oldest write has waited for the disk."
    );
}

fn describe_peers() {
    describe_gauge!(
        "kontiki_follower_lag_entries",
        Unit::Count,
        "Entries that a follower surely lacks, as its leader knows; NaN elsewhere."
    );
    describe_gauge!(
        "kontiki_round_trip_seconds",
        Unit::Seconds,
        "Smoothed time that a follower takes to answer its leader; NaN elsewhere."
    );
    describe_gauge!(
        "kontiki_lane_length",
        Unit::Count,
        "Messages or chunks that wait to be sent to a peer."
    );
    describe_gauge!(
        "kontiki_lane_bytes",
        Unit::Bytes,
        "Bytes that wait to be sent to a peer, about."
    );
}

fn describe_state() {
    describe_gauge!("kontiki_term", "The term of this node.");
    describe_gauge!("kontiki_is_leader", "Whether this node leads.");
    describe_counter!(
        "kontiki_leader_changes_total",
        Unit::Count,
        "How often another leader came to be known."
    );
    describe_gauge!("kontiki_commit_index", "Index up to which the log is committed.");
    describe_gauge!("kontiki_applied_index", "Index up to which the log is applied.");
    describe_gauge!("kontiki_log_bytes", Unit::Bytes, "What the entries of the log take, about.");
    describe_gauge!(
        "kontiki_lease_left_seconds",
        Unit::Seconds,
        "How long this leader may serve reads under its lease; 0 without one."
    );
    describe_gauge!(
        "kontiki_is_storage_full",
        "Whether the disk under the log or the state machine is full."
    );
    describe_gauge!("kontiki_is_damaged", "Whether a damaged log is not whole again yet.");
    describe_gauge!(
        "kontiki_needs_snapshot",
        "Whether a state machine that lost its state waits for a snapshot."
    );
    describe_counter!(
        "kontiki_snapshots_total",
        Unit::Count,
        "Snapshots that were made, failed, sent, received and restored."
    );
}
